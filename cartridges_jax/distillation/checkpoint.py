"""Training checkpoints: trainable slots, optimizer moments and the data iterator, by Orbax.

Only what changes is saved, so a checkpoint is four times the size of the cartridge (slots, two
moments, the best slots so far), and the first process alone writes and reads it: disks need not be
shared, and a run may go on with other processes or another mesh. It is written while training goes
on. The latest `KEEP` are kept, each with the best slots so far. The settings lie beside the
checkpoints: a run goes on only with the ones it began with.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from cartridges_jax import distributed, files
from cartridges_jax.config import digest, first_difference
from cartridges_jax.errors import InputError

KEEP = 2


class TrainingCheckpoints:
    """The checkpoints of one run; use as a context manager."""

    def __init__(self, folder: epath.Path, inputs: dict[str, Any]):
        """Opens the folder of a run.

        Args:
          folder: made if missing.
          inputs: settings and hashes; a folder begun with others is refused.

        Raises:
          InputError: if the folder holds a run with other inputs; the difference is named.
        """
        self._folder = folder.resolve()
        distributed.check_alike("the run", digest(inputs))
        distributed.by_primary(lambda: self._open(json.loads(json.dumps(inputs))))

    def _open(self, inputs: dict[str, Any]) -> None:
        folder = self._folder
        settings = folder / "inputs.json"
        if settings.exists():
            try:
                saved = json.loads(settings.read_text())
            except ValueError as error:
                raise InputError(f"{settings} is damaged ({error}); remove {folder}") from error
            difference = first_difference(saved, inputs)
            if difference:
                raise InputError(
                    f"{folder} holds a run with {difference}; choose another folder or remove this "
                    "one"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(settings, inputs)
        # Orbax tells every step at INFO, and an error, which it raises too, once for each thread.
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("orbax").setLevel(logging.CRITICAL)
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=alone,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until what was saved is on the disk."""
        if distributed.is_primary():
            with files.writing(self._folder / "checkpoint"):
                self._manager.close()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Begins to save a pytree of arrays and, JSON-able, what else the loop needs to go on.

        The arrays may be used for something else at once. What goes wrong is told by the next call.
        """
        leaves = {
            str(i): np.array(distributed.whole(x)) for i, x in enumerate(jax.tree.leaves(state))
        }
        if not distributed.is_primary():
            return
        both = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), progress=ocp.args.JsonSave(progress)
        )
        with files.writing(self._folder / "checkpoint"):
            self._manager.save(step, args=both, force=True)

    def restore(self, like: Any) -> tuple[int, Any, Any] | None:
        """Returns (step, state, progress) of the latest checkpoint, shaped and placed as `like`."""
        leaves, structure = jax.tree.flatten(like)
        found = distributed.by_primary(lambda: self._read(leaves))
        told = distributed.from_all(b"" if found is None else json.dumps(found[0]).encode())[0]
        if not told:
            return None
        step, progress = json.loads(told)
        arrays = found[1] if found else [np.zeros(x.shape, x.dtype) for x in leaves]
        arrays = distributed.from_primary(arrays)
        placed = [_placed_as(old, np.asarray(new)) for old, new in zip(leaves, arrays, strict=True)]
        return step, jax.tree.unflatten(structure, placed), progress

    def _read(self, leaves: list[Any]) -> tuple[Any, list[np.ndarray]] | None:
        step = self._manager.latest_step()
        if step is None:
            return None
        shapes = {str(i): np.zeros(x.shape, x.dtype) for i, x in enumerate(leaves)}
        wanted = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), progress=ocp.args.JsonRestore()
        )
        try:
            with _last_words_unheard():
                saved = self._manager.restore(step, args=wanted)
            if not saved["progress"]:  # `save` always writes it
                raise ValueError("its progress is gone")
        except Exception as error:  # Orbax and TensorStore have many kinds
            raise InputError(
                f"the checkpoint {self._folder}/{step} cannot be read; remove it to go on from the "
                f"one before ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
        return (step, saved["progress"]), [saved["state"][str(i)] for i in range(len(leaves))]


@contextlib.contextmanager
def _last_words_unheard() -> Iterator[None]:
    """Where one array cannot be read, the reads of others end in errors that nobody waits for."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    except Exception:
        time.sleep(0.5)  # until the last has ended
        raise
    finally:
        sys.unraisablehook = hook


def _placed_as(like: Any, array: np.ndarray) -> Any:
    if not isinstance(like, jax.Array) or not like.ndim:
        return array  # numbers lie where they are used
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
