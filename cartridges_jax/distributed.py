"""Processes: how they find each other, who speaks for all, what is whose, and when to stop.

JAX is multi-controller: every host runs the same program, and an array of a mesh that spans hosts
lives on all of them. Training does that. What is many independent pieces of work, self-study and
scoring, is divided by index instead: each process works on its own devices, and what is on disk
says what is done. Only the first process prints and writes single files; disks may be shared or
each host's own. There is no coordinator of our own and no queue.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from cartridges_jax import files
from cartridges_jax.errors import InputError

ResultT = TypeVar("ResultT")
POLL_S = 1.0  # between two looks at what other processes have finished


def start(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, saves: bool = False
) -> None:
    """Joins the processes of one job; call it before anything else of jax.

    Args:
      coordinator: host:port of the first process; "" to find it as TPU VMs, GKE, SLURM and MPI
        tell it.
      num_processes: of the job.
      process_id: of this process, from 0.
      saves: whether SIGTERM is waited for by `stopping`; else it ends a process at once.

    Raises:
      InputError: if they cannot be found.
    """
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise InputError("coordinator, num_processes and process_id must be given together")
    if all(given) and not process_id < num_processes:
        raise InputError(f"{process_id=} must be below {num_processes=}")
    jax.config.update("jax_enable_preemption_service", saves)
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


def index() -> int:
    """The number of this process."""
    return jax.process_index()


def is_primary() -> bool:
    """Whether this process prints, and writes what is written once."""
    return jax.process_index() == 0


def is_mine(index: int) -> bool:
    """Whether a piece of work of this index is this process's."""
    return index % jax.process_count() == jax.process_index()


def disk_is_shared(folder: epath.Path) -> bool:
    """Whether all processes see the same files in a folder that each of them has."""
    if jax.process_count() == 1:
        return True
    # A name as temporary files have, so that one that is left behind is swept away.
    named = by_primary(lambda: files.temporary_name(folder / "seen-by-all").name)
    mark = folder / from_all((named or "").encode())[0].decode()
    by_primary(lambda: files.touch(mark))
    seen = everywhere(mark.exists())
    if is_primary():
        mark.unlink(missing_ok=True)
    return seen


def barrier(name: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def wait_for_others() -> None:
    """Lets a moment pass before the next look at what other processes have finished."""
    time.sleep(POLL_S)


def from_all(data: bytes) -> list[bytes]:
    """What each process gives, in their order; all must ask, with any length."""
    if jax.process_count() == 1:
        return [data]
    lengths = multihost_utils.process_allgather(np.asarray(len(data)))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [row[:n].tobytes() for row, n in zip(gathered, lengths, strict=True)]


def by_primary(run: Callable[[], ResultT]) -> ResultT | None:
    """What `run` gives on the first process, None on others.

    Raises:
      InputError: on all, where it was raised on the first.
    """
    found, error = None, None
    try:
        if is_primary():
            found = run()
    except InputError as raised:
        error = raised
    reason = from_all(str(error or "").encode())[0].decode()
    if error or reason:
        raise error or InputError(reason)
    return found


def everywhere(holds: bool) -> bool:
    """Whether something holds on all processes."""
    return all(from_all(b"yes" if holds else b""))


def from_primary(value: Any) -> Any:
    """A pytree of the first process's arrays; others give some of the same shapes and dtypes."""
    return value if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(value)


def check_alike(what: str, value: str) -> None:
    """Raises `InputError` if the processes were started with different values of something."""
    said = [data.decode() for data in from_all(value.encode())]
    for i, other in enumerate(said):
        if other != said[0]:
            raise InputError(
                f"{what} differs between the processes of this job: process 0 has {said[0]}, "
                f"process {i} has {other}; start all with the same flags on the same files"
            )


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[int], bool]]:
    """Watches for SIGTERM, which is how platforms tell that a machine is taken away.

    Gives a function that says, at a step whose number grows, whether all processes should save and
    stop there; if one is told, all stop at the same step. Each must ask at every step.
    """
    told = threading.Event()
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # only the main thread may listen
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield lambda step: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def whole(x: Any) -> np.ndarray:
    """An array on this host, wherever its parts live; all processes must ask for it."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
