"""The distillation loop: trains the slots of a cartridge against the teacher's targets.

Takes `targets-*`, hands on checkpoints and a `.cartridge`; `step.py` is what it repeats. A run that
was stopped goes on from its last checkpoint and ends with the same bits.

Time of a step grows with rows * T * (weights + L * N * H * (p + T)); see the modules of the
attention and the loss for memory.
"""

import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from cartridges_jax import distributed, files, initializers
from cartridges_jax.cartridge import Cartridge, FrozenSlot, TrainableSlot
from cartridges_jax.config import check_ranges, first_difference
from cartridges_jax.corpus import Document, corpus_identity
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.distillation.checkpoint import TrainingCheckpoints
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.dataset import packed_data
from cartridges_jax.distillation.step import make_optimizer, make_train_step, place_batch
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import MetricsLog, progress
from cartridges_jax.self_study import conversation
from cartridges_jax.sharding import DATA
from cartridges_jax.shards import ShardSet


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


def train(
    model: LanguageModel,
    documents: Sequence[Document],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    validate: Callable[[Cartridge], float] | None = None,
) -> Cartridge:
    """Trains a cartridge and writes it to `out/NAME.cartridge`; goes on if begun before.

    Args:
      model: the frozen base.
      documents: the corpus, for the initialiser and the provenance.
      data: folder with targets (or with conversations, which are scored first).
      out: folder of checkpoints, metrics and the cartridge.
      config: settings.
      validate: scores a cartridge, higher is better, such as the accuracy of generated answers;
        called at every checkpoint. The cartridge with the highest score is the result: the loss
        keeps falling after the answers have begun to get worse. None takes the last one.

    Returns:
      The trained cartridge, with its provenance.

    Raises:
      InputError: on settings or data that cannot work, or a folder begun with others.
    """
    config = config or TrainConfig()
    _check(config, model)
    folder = files.output_folder(out)
    shards = open_targets(model, documents, data)
    packed = packed_data(
        shards, config.row_shape(), config.rows_per_step, config.seed, config.labels, config.loss_on
    )
    if config.num_slots + packed.longest > model.config.window:
        raise InputError(
            f"{config.num_slots} slots and a conversation of {packed.longest} tokens exceed the "
            f"model's window of {model.config.window}; lower num_slots"
        )
    inputs = dataclasses.asdict(config) | {
        "model": model.fingerprint,
        "targets": shards.fingerprint,
        "corpus": corpus_identity(documents),
        "validated": validate is not None,
    }
    for name in ("preset", "rows_at_once"):  # change nothing but memory and time
        del inputs[name]

    # ---- state
    optimizer = make_optimizer(config)
    with jax.set_mesh(model.mesh):
        cartridge = initialize_cartridge(model, documents, config)
        graphdef, trainable, frozen = nnx.split(cartridge, TrainableSlot, FrozenSlot)
        opt_state = optimizer.init(trainable)
    train_step = make_train_step(graphdef, optimizer, config.loss)
    iterator = iter(packed.batches)

    def next_batch() -> dict[str, Any]:
        with jax.set_mesh(model.mesh):
            return place_batch(model.mesh, next(iterator), config.rows_at_once)

    step, best, made = 0, {"step": 0, "score": None}, {}
    best_slots = jax.tree.map(jnp.copy, trainable)

    with TrainingCheckpoints(folder / "checkpoints", inputs) as checkpoints:
        # ---- resume
        restored = checkpoints.restore((trainable, opt_state, best_slots))
        if restored is not None:
            step, (trainable, opt_state, best_slots), made = restored
            best = made["best"]
            iterator.set_state(made["data"])

        # ---- loop: the host prepares the next rows and reads the last figures while devices work
        with _Figures(folder, config, step) as figures:
            batch = next_batch() if step < config.num_steps else None
            while batch is not None:
                with jax.set_mesh(model.mesh):
                    trainable, opt_state, means = train_step(
                        trainable, opt_state, frozen, model.transformer, batch
                    )
                step += 1
                saving = step % config.checkpoint_every == 0 or step == config.num_steps
                read = iterator.get_state() if saving else None
                batch = next_batch() if step < config.num_steps else None
                figures.take(step, means)
                if not saving:
                    continue
                figures.read()
                score = None
                if validate is not None:
                    score = validate(nnx.merge(graphdef, trainable, frozen))
                    if not np.isfinite(score):
                        raise InputError(f"validate scored {score} at step {step}")
                if best["score"] is None or (score is not None and score >= best["score"]):
                    best = {"step": step, "score": score}
                    best_slots = jax.tree.map(jnp.copy, trainable)
                figures.write(score)
                made = {"best": best, "data": read, "date": _today()}
                checkpoints.save(step, (trainable, opt_state, best_slots), made)

    # ---- hand on
    provenance = {
        "model": model.identity,
        "corpus": inputs["corpus"],
        "data": {
            "targets": shards.fingerprint,
            "conversations": packed.num_conversations,
            "dropped": packed.num_dropped,
            "target_positions": packed.target_positions,
        },
        "settings": dataclasses.asdict(config),
        "best": best,
        "made": made["date"],
    }
    with jax.set_mesh(model.mesh):
        slots = nnx.merge(graphdef, best_slots, frozen)
        trained = Cartridge(
            jnp.asarray(distributed.whole(slots.keys.astype(model.dtype))),
            jnp.asarray(distributed.whole(slots.values.astype(model.dtype))),
            num_frozen=slots.num_frozen,
            next_position=slots.next_position,
            provenance=provenance,
        )
    if not all(
        np.isfinite(np.asarray(x, np.float32)).all() for x in (trained.keys, trained.values)
    ):
        raise InputError(f"the slots are not finite; lower learning_rate={config.learning_rate}")
    if distributed.is_primary():
        trained.save(cartridge_path(folder))
    distributed.barrier("cartridge saved")
    return trained


class _Figures:
    """The figures of each step, read when the next one is running, logged and shown."""

    def __init__(self, folder: epath.Path, config: TrainConfig, step: int):
        self._config = config
        self._log = MetricsLog(folder, step) if distributed.is_primary() else None
        self._bar = progress(config.num_steps, "train", "step", step)
        self._step, self._means, self._values = step, None, {}
        self._last = time.perf_counter()

    def take(self, step: int, means: dict[str, jax.Array]) -> None:
        """Takes the figures of a step that may still be running; finishes those of the last."""
        if self._means is None:  # a checkpoint was saved meanwhile, or there was no step
            self._last = time.perf_counter()
        self.read()
        self.write()
        self._step, self._means = step, means

    def read(self) -> None:
        """Waits for the step that was taken.

        Raises:
          InputError: if its loss is not finite.
        """
        if self._means is None:
            return
        self._values = {name: float(value) for name, value in self._means.items()}
        self._means = None
        if not np.isfinite(self._values["loss"]):
            raise InputError(
                f"the loss is {self._values['loss']} at step {self._step}; lower learning_rate, "
                f"which is {self._config.learning_rate}"
            )
        tokens = self._config.rows_per_step * self._config.row_length
        now = time.perf_counter()
        self._values["tokens_per_s"] = tokens / (now - self._last)
        self._last = now

    def write(self, score: float | None = None) -> None:
        """Logs and shows what was read, once."""
        if not self._values:
            return
        values = self._values if score is None else self._values | {"score": score}
        if self._log is not None:
            self._log.write(self._step, **values)
        self._bar.update()
        self._bar.set_postfix(kl=f"{values['kl']:.3f}", tok_s=f"{values['tokens_per_s']:.0f}")
        self._values = {}

    def __enter__(self) -> "_Figures":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._log is not None:
            self._log.__exit__(*error)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def _check(config: TrainConfig, model: LanguageModel) -> None:
    """Raises `InputError` for settings that cannot work."""
    check_ranges(config)
    if not 0 <= config.num_frozen < config.num_slots:
        raise InputError(
            f"num_frozen is {config.num_frozen}; it must leave some of the {config.num_slots} "
            "slots to train"
        )
    rows = model.mesh.shape[DATA]
    for name in ("rows_per_step", "rows_at_once"):
        if getattr(config, name) % rows:
            raise InputError(
                f"{name} {getattr(config, name)} is no multiple of the {rows} devices that share "
                "rows (mesh_data)"
            )
    if config.rows_at_once and config.rows_per_step % config.rows_at_once:
        raise InputError(
            f"rows_at_once {config.rows_at_once} does not divide rows_per_step "
            f"{config.rows_per_step}"
        )


def cartridge_path(folder: str | os.PathLike[str]) -> epath.Path:
    """Where `train` puts the cartridge: the folder's own name with the ending .cartridge."""
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
