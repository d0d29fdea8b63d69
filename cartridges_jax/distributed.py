"""Processes: how they find each other, who speaks for all, and what is whose.

JAX is multi-controller: every host runs the same program, and an array of a mesh that spans hosts
lives on all of them. Training does that. What is many independent pieces of work, self-study and
scoring, is divided by index instead: each process works on its own devices, and what is on disk
says what is done. Only the first process prints and writes single files. There is no coordinator
of our own and no queue.
"""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from cartridges_jax.errors import InputError

POLL_S = 1.0  # between two looks at what other processes have finished


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of one job; call it before anything else of jax.

    Args:
      coordinator: host:port of the first process; "" to find it as TPU VMs, GKE, SLURM and MPI
        tell it.
      num_processes: of the job.
      process_id: of this process, from 0.

    Raises:
      InputError: if they cannot be found.
    """
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise InputError("coordinator, num_processes and process_id must be given together")
    if all(given) and not process_id < num_processes:
        raise InputError(f"{process_id=} must be below {num_processes=}")
    try:
        if all(given):
            jax.distributed.initialize(coordinator, num_processes, process_id)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the processes of this job did not find each other ({reason}); give --coordinator, "
            "--num_processes and --process_id to each"
        ) from error


def count() -> int:
    """Processes of the job."""
    return jax.process_count()


def is_primary() -> bool:
    """Whether this process prints, and writes what is written once."""
    return jax.process_index() == 0


def is_mine(index: int) -> bool:
    """Whether a piece of work of this index is this process's."""
    return index % jax.process_count() == jax.process_index()


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def wait_for_others() -> None:
    """Lets a moment pass before the next look at what other processes have finished."""
    time.sleep(POLL_S)


def whole(x: jax.Array) -> np.ndarray:
    """An array on this host, wherever its parts live; all processes must ask for it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
