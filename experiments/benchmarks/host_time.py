"""What the host adds to a training step at the shape of an 8B model, with a stand-in for devices.

    python -m experiments.benchmarks.host_time

The real loop over real targets (64 rows of 2,048 tokens, all of them targets, the teacher's top 20,
2,048 slots of a small model), but each step takes `--step_seconds` and no processor: what a step of
Llama-3.1-8B takes on v5e-16 by `cartridges plan`. The result is committed as
experiments/results/host_time.json.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import app, flags

from cartridges_jax.corpus import Document, corpus_identity
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.distillation import train as train_module
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.loading import load_model
from cartridges_jax.shards import ShardSet
from experiments.record import write_result
from experiments.small_model import SMALL_MODEL

_OUT = flags.DEFINE_string("out", "experiments/results/host_time.json", "Result file.")
_STEP_SECONDS = flags.DEFINE_float("step_seconds", 1.5, "Of the stand-in for devices.")
_STEPS = flags.DEFINE_integer("steps", 40, "Steps; the first five are not counted.")

ROWS, TOKENS, SLOTS, TOP = 64, 2048, 64, 20
DOCUMENT = Document("text", "Text", "Ada Brown lives in Oslo. She works as a baker. " * 40)


class Busy:
    """Figures of a step that are there when the devices have done it."""

    def __init__(self, ready: float):
        self._ready = ready

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        time.sleep(max(0.0, self._ready - time.perf_counter()))
        return np.ones(1, np.float32)


class Devices:
    """Compute one step after another, each in the same time."""

    def __init__(self, seconds: float):
        self.seconds, self.free_at, self.idle = seconds, 0.0, []

    def step(self, learning: Any, given: Any, base: Any, batch: dict[str, jax.Array]) -> Any:
        jax.block_until_ready(batch)
        now = time.perf_counter()
        if self.free_at:
            self.idle.append(max(0.0, now - self.free_at))
        self.free_at = max(now, self.free_at) + self.seconds
        return learning, dict.fromkeys(("loss", "kl", "grad_norm"), Busy(self.free_at))


def write_targets(folder: pathlib.Path, model: LanguageModel) -> None:
    """Conversations of 200 to 700 tokens with made targets, enough for a few epochs."""
    rng = np.random.default_rng(0)
    inputs = {
        "corpus": corpus_identity([DOCUMENT]), "model": model.fingerprint,
        "targets_on": targets_file.TARGETS_ON,
    }  # fmt: skip
    shards = ShardSet.open(folder, targets_file.SHARDS, inputs)
    for unit in range(64):
        records = []
        for _ in range(64):
            n = int(rng.integers(200, 700))
            ids = rng.integers(5, 3000, (n - 1, TOP)).astype(np.int32)
            logs = np.log(rng.dirichlet(np.ones(TOP), n - 1)).astype(np.float32)
            tokens = rng.integers(5, 3000, n).astype(np.int32)
            records.append(targets_file.encode_record(tokens, np.arange(n - 1), ids, logs))
        shards.write(unit, records, source="made", **targets_file.row_sizes(records))


def main(_) -> None:
    model = load_model(SMALL_MODEL, dtype="float32")
    window = dataclasses.replace(model.config, max_position_embeddings=TOKENS + SLOTS)
    model.transformer.config = window
    devices = Devices(_STEP_SECONDS.value)
    config = TrainConfig(
        num_slots=SLOTS, num_steps=_STEPS.value, rows_per_step=ROWS, row_length=TOKENS,
        loss_on="all", checkpoint_every=10,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_targets(folder / "data", model)
        started = time.perf_counter()
        with mock.patch.object(train_module, "make_train_step", lambda *_: devices.step):
            train_module.train(model, [DOCUMENT], folder / "data", folder / "run", config)
        seconds = time.perf_counter() - started
    idle = devices.idle[5:]
    result = {
        "step_s": _STEP_SECONDS.value,
        "rows": ROWS,
        "tokens": TOKENS,
        "steps": _STEPS.value,
        "run_s": round(seconds, 2),
        "idle_ms_a_step": [round(1e3 * f(idle), 2) for f in (min, np.median, np.mean, max)],
        "share_outside_of_devices": round(sum(idle) / (len(idle) * _STEP_SECONDS.value), 4),
    }
    print(json.dumps(result, indent=2))
    write_result(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
