"""Training checkpoints: trainable slots, optimizer moments and the data iterator, by Orbax.

Only what changes is saved, so a checkpoint is four times the size of the cartridge (slots, two
moments, the best slots so far). The settings are kept beside the checkpoints: a run goes on only
with the ones it began with.
"""

import json
import logging
from typing import Any

import jax
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from cartridges_jax import distributed, files
from cartridges_jax.config import first_difference
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
        settings = folder / "inputs.json"
        inputs = json.loads(json.dumps(inputs))
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
        distributed.barrier("checkpoints looked for")
        if distributed.is_primary() and not settings.exists():
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(settings, inputs)
        distributed.barrier("checkpoints begun")
        # Orbax tells every step at INFO, and an error, which it raises too, once for each thread.
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("orbax").setLevel(logging.CRITICAL)
        # Orbax declares its policies against a protocol that they do not match in types.
        policies: Any = ocp.training
        self._checkpointer = ocp.training.Checkpointer(
            folder.resolve(),
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(KEEP),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with files.writing(self._checkpointer.directory):
            self._checkpointer.close()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a pytree of arrays and, JSON-able, what else the loop needs to go on."""
        leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(state))}
        with files.writing(self._checkpointer.directory):
            self._checkpointer.save(step, leaves, custom_metadata=progress)

    def restore(self, like: Any) -> tuple[int, Any, Any] | None:
        """Returns (step, state, progress) of the latest checkpoint, shaped and placed as `like`."""
        latest = self._checkpointer.latest
        if latest is None:
            return None
        leaves, structure = jax.tree.flatten(like)
        try:
            saved = self._checkpointer.load(latest, {str(i): x for i, x in enumerate(leaves)})
            progress = self._checkpointer.metadata(latest).custom_metadata
            if not progress:  # `save` always writes it
                raise ValueError("its metadata is gone or damaged")
        except (ValueError, KeyError, OSError) as error:
            where = f"{self._checkpointer.directory}/{latest.step}"
            raise InputError(
                f"the checkpoint {where} cannot be read; remove it to go on from the one before "
                f"({str(error).splitlines()[0]})"
            ) from error
        state = jax.tree.unflatten(structure, [saved[str(i)] for i in range(len(leaves))])
        return latest.step, state, progress
