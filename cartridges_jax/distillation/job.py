"""One cartridge in training, as the host sees it: its data, figures, checkpoints and result.

The arrays that a step changes are elsewhere (`step.Places`): several jobs may share a step, and
each is here as if it were alone.
"""

import dataclasses
import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from cartridges_jax import distributed, files, initializers
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.config import check_ranges, first_difference
from cartridges_jax.corpus import Document, corpus_identity
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.distillation.checkpoint import TrainingCheckpoints
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.dataset import PackedData
from cartridges_jax.distillation.step import Learning, Places, begun, graph_of
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import MetricsLog
from cartridges_jax.self_study import conversation
from cartridges_jax.sharding import DATA
from cartridges_jax.shards import ShardSet

# Settings that change nothing but memory and time: a run may go on with others.
MEMORY_ALONE = ("preset", "rows_at_once", "recompute", "memory_gib")


@dataclasses.dataclass(frozen=True)
class Job:
    """A cartridge to be trained.

    Attributes:
      documents: the corpus, for the initialiser and the provenance.
      data: folder with targets (or with conversations, which are scored first).
      out: folder of checkpoints, metrics and the cartridge.
      config: settings.
      validate: scores a cartridge, higher is better, such as the accuracy of generated answers;
        called at every checkpoint. The cartridge with the highest score is the result: the loss
        keeps falling after the answers have begun to get worse. None takes the last one.
    """

    documents: Sequence[Document]
    data: str | os.PathLike[str]
    out: str | os.PathLike[str]
    config: TrainConfig = TrainConfig()
    validate: Callable[[Cartridge], float] | None = None


class Training:
    """A job at work.

    Attributes:
      config: its settings.
      step: how many are done.
      rows: iterator of its batches, once it has begun.
    """

    def __init__(self, model: LanguageModel, job: Job):
        """Opens data and folder; goes on if begun before.

        Raises:
          InputError: on settings or data that cannot work, or a folder begun with others.
        """
        config = job.config
        check_settings(config)
        self.config, self._model, self._job = config, model, job
        self.folder = files.output_folder(job.out)
        shards = open_targets(model, job.documents, job.data)
        self._packed = PackedData(
            shards, config.row_shape(), config.rows_per_step, config.seed, config.labels,
            config.loss_on,
        )  # fmt: skip
        if config.num_slots + self._packed.longest > model.config.window:
            raise InputError(
                f"{config.num_slots} slots and a conversation of {self._packed.longest} tokens "
                f"exceed the model's window of {model.config.window}; lower num_slots"
            )
        inputs = dataclasses.asdict(config) | {
            "model": model.fingerprint,
            "targets": shards.fingerprint,
            "corpus": corpus_identity(job.documents),
            "validated": job.validate is not None,
        }
        for name in MEMORY_ALONE:
            del inputs[name]
        self._inputs = inputs
        self._checkpoints = TrainingCheckpoints(self.folder / "checkpoints", inputs)
        self.step = 0
        self.rows: Any = iter(())
        self._log: MetricsLog | None = None
        self._best = {"step": 0, "score": None}
        self._made = ""

    @property
    def is_done(self) -> bool:
        return self.step >= self.config.num_steps

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint belongs behind this step."""
        return self.step % self.config.checkpoint_every == 0 or self.is_done

    def begin(self, own_rows: Sequence[bool]) -> Places:
        """The cartridge as it begins, or as the last checkpoint has it: see `step.begun`."""
        with jax.set_mesh(self._model.mesh):
            start = initialize_cartridge(self._model, self._job.documents, self.config)
            one = begun(start, self.config)
        self._given = one.given
        self._best_slots = [np.asarray(distributed.whole(x)) for x in _slots(one.learning)]
        self.rows = iter(self._packed.batches(own_rows))
        restored = self._checkpoints.restore((one.learning, self._best_slots))
        if restored is not None:
            self.step, (learning, self._best_slots), told = restored
            self._best, self._made = told["best"], told["date"]
            self.rows.set_state(told["data"])
            one = one._replace(learning=learning)
        self._log = MetricsLog(self.folder, self.step) if distributed.is_primary() else None
        return one

    def write(self, step: int, **figures: float) -> None:
        """Logs the figures of a step.

        Raises:
          InputError: if its loss is not finite.
        """
        if not np.isfinite(figures["loss"]):
            raise InputError(
                f"the loss is {figures['loss']} at step {step}; lower learning_rate, which is "
                f"{self.config.learning_rate}"
            )
        if self._log is not None:
            self._log.write(step, **figures)

    def validated(self, learning: Learning) -> dict[str, float]:
        """Scores the cartridge, if that is wanted, and keeps it if it is the best so far."""
        score = None
        if self._job.validate is not None:
            score = self._job.validate(self._cartridge(learning.trainable))
            if not np.isfinite(score):
                raise InputError(f"validate scored {score} at step {self.step}")
        if self._best["score"] is None or (score is not None and score >= self._best["score"]):
            self._best = {"step": self.step, "score": score}
            self._best_slots = [np.array(distributed.whole(x)) for x in _slots(learning)]
        return {} if score is None else {"score": score}

    def save(self, learning: Learning, data: Any) -> None:
        """Begins a checkpoint at this step; `data` is the state of `rows` behind it."""
        self._made = _today()
        told = {"best": self._best, "data": data, "date": self._made}
        self._checkpoints.save(self.step, (learning, self._best_slots), told)

    def close(self) -> None:
        """Waits for the last checkpoint and closes the files."""
        self._checkpoints.close()
        if self._log is not None:
            self._log.close()

    def result(self) -> Cartridge:
        """The trained cartridge, with its provenance; written to `cartridge_path`.

        Call it outside of a mesh: the slots are those of no mesh in particular, as a file's are.

        Raises:
          InputError: if its slots are not finite.
        """
        provenance = {
            "model": self._model.identity,
            "corpus": self._inputs["corpus"],
            "data": {
                "targets": self._inputs["targets"],
                "conversations": self._packed.num_conversations,
                "dropped": self._packed.num_dropped,
                "target_positions": self._packed.target_positions,
            },
            "settings": dataclasses.asdict(self.config),
            "best": self._best,
            "made": self._made,
        }
        frozen = [np.asarray(distributed.whole(x)) for x in jax.tree.leaves(self._given.frozen)]
        keys, values = (
            np.concatenate(both, axis=1) for both in zip(frozen, self._best_slots, strict=True)
        )
        if not (np.isfinite(keys).all() and np.isfinite(values).all()):
            rate = self.config.learning_rate
            raise InputError(f"the slots are not finite; lower learning_rate={rate}")
        trained = Cartridge(
            jnp.asarray(keys, self._model.dtype),
            jnp.asarray(values, self._model.dtype),
            num_frozen=self.config.num_frozen,
            next_position=int(self._given.next_position),
            provenance=provenance,
        )
        if distributed.is_primary():
            trained.save(cartridge_path(self.folder))
        distributed.barrier("cartridge saved")
        return trained

    def _cartridge(self, trainable: Any) -> Cartridge:
        return nnx.merge(graph_of(self.config), trainable, self._given.frozen)


def _slots(learning: Learning) -> list[jax.Array]:
    """Trainable keys and values."""
    return jax.tree.leaves(learning.trainable)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def initialize_cartridge(
    model: LanguageModel, documents: Sequence[Document], config: TrainConfig
) -> Cartridge:
    """Makes the untrained cartridge that `config` asks for, in float32."""
    slots, frozen = config.num_slots, config.num_frozen
    match config.initializer:
        case "first_tokens":
            made = initializers.first_tokens(model, documents, slots, frozen)
        case "sampled_spans":
            made = initializers.sampled_spans(model, documents, slots, frozen, config.seed)
        case "text":
            made = initializers.given_text(model, config.init_text, slots, frozen)
        case "random":
            made = initializers.random_vectors(model, documents, slots, frozen, config.seed)
    return Cartridge(
        made.keys.astype(jnp.float32), made.values.astype(jnp.float32), num_frozen=frozen
    )


def check_settings(config: TrainConfig) -> None:
    """Raises `InputError` for settings that cannot work."""
    check_ranges(config)
    if not 0 <= config.num_frozen < config.num_slots:
        raise InputError(
            f"num_frozen is {config.num_frozen}; it must leave some of the {config.num_slots} "
            "slots to train"
        )
    if config.rows_at_once and config.rows_per_step % config.rows_at_once:
        raise InputError(
            f"rows_at_once {config.rows_at_once} does not divide rows_per_step "
            f"{config.rows_per_step}"
        )


def check_rows_are_shared(config: TrainConfig, model: LanguageModel) -> None:
    """Raises `InputError` if the devices that share a cartridge's rows cannot do so."""
    rows = model.mesh.shape[DATA]
    for name in ("rows_per_step", "rows_at_once"):
        if getattr(config, name) % rows:
            raise InputError(
                f"{name} {getattr(config, name)} is no multiple of the {rows} devices that share "
                "rows (mesh_data)"
            )


def cartridge_path(folder: str | os.PathLike[str]) -> epath.Path:
    """Where training puts the cartridge: the folder's own name with the ending .cartridge."""
    path = files.local_path(folder)
    return path / f"{path.resolve().name}.cartridge"


def open_targets(
    model: LanguageModel, documents: Sequence[Document], data: str | os.PathLike[str]
) -> ShardSet:
    """Opens the targets in `data`, scoring conversations that have none yet.

    Raises:
      InputError: if they are about other documents or were scored by another model.
    """
    folder = files.local_path(data)
    given = corpus_identity(documents)
    if ShardSet.exists(folder, conversation.SHARDS):
        studied = ShardSet.read(folder, conversation.SHARDS).inputs.get("corpus")
        difference = first_difference(studied, given, "corpus")
        if difference:
            raise InputError(f"the conversations in {folder} are about other text: {difference}")
        return targets_file.score_targets(model, folder)
    targets = ShardSet.read(folder, targets_file.SHARDS)
    difference = first_difference(targets.inputs.get("model"), model.fingerprint, "model")
    if difference:
        raise InputError(f"the targets in {folder} were scored by another model: {difference}")
    asked: dict[str, Any] = {"corpus": given, "targets_on": targets_file.TARGETS_ON}
    difference = first_difference({name: targets.inputs.get(name) for name in asked}, asked)
    if difference:
        raise InputError(f"the targets in {folder} are not those asked for: {difference}")
    return targets
