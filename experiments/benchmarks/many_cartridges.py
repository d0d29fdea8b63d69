"""Many cartridges in one job beside as many trainings, on the tests' small model.

    python -m experiments.benchmarks.many_cartridges

Each cartridge has its own text, data and seed: 32 slots, 10 steps of one row of 128 tokens. 64
trainings one after the other, each a process as a person starts it, and jobs of 1, 8 and 64; all
find their programs compiled, as after a first run. The cartridges of both ways are compared. Some
ten minutes on two CPU cores. The result is committed as experiments/results/many_cartridges.json.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import read_corpus
from cartridges_jax.loading import load_model
from experiments.embedded_world.text_rows import text_targets
from experiments.record import write_result
from experiments.small_model import SMALL_MODEL

_OUT = flags.DEFINE_string("out", "experiments/results/many_cartridges.json", "Result file.")
_COUNT = flags.DEFINE_integer("count", 64, "Cartridges.")

SETTINGS = ("--num_slots=32", "--num_steps=10", "--rows_per_step=1", "--row_length=128",
            "--learning_rate=0.02", "--dtype=float32")  # fmt: skip


def make_data(folder: pathlib.Path, count: int) -> list[dict[str, Any]]:
    """A text and its targets for each cartridge; the lines of the file of jobs."""
    model = load_model(SMALL_MODEL, dtype="float32")
    lines = []
    for i in range(count):
        text = folder / f"text{i}.md"
        text.write_text(f"# Person {i}\n\n" + f"Person {i} lives in house {7 * i + 3}. " * 24)
        rows = {"num_rows": 24, "min_tokens": 20, "max_tokens": 60}
        text_targets(model, read_corpus(text).documents, folder / f"data{i}", **rows)
        lines.append({"corpus": str(text), "data": str(folder / f"data{i}"), "seed": i})
    return lines


def run(folder: pathlib.Path, *arguments: str) -> float:
    """Seconds of a `cartridges train`, from its start to its end."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "cartridges_jax.cli", "train", f"--model={SMALL_MODEL}"]
    started = time.perf_counter()
    subprocess.run([*command, *SETTINGS, *arguments], env=env, check=True, capture_output=True)
    return time.perf_counter() - started


def run_jobs(folder: pathlib.Path, lines: list[dict[str, Any]], name: str) -> float:
    file = folder / f"{name}.jsonl"
    jobs = [line | {"out": str(folder / f"{name}-{i}")} for i, line in enumerate(lines)]
    file.write_text("\n".join(map(json.dumps, jobs)))
    return run(folder, f"--jobs={file}", f"--at_once={len(lines)}")


def main(_) -> None:
    count = _COUNT.value
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        lines = make_data(folder, count)

        def alone(i: int, out: str) -> float:
            flags_of = [f"--{name}={value}" for name, value in lines[i].items()]
            return run(folder, *flags_of, f"--out={folder / out}")

        alone(0, "first")  # compiles
        separate = [alone(i, f"alone-{i}") for i in range(count)]
        together = {}
        for size in sorted({1, 8, count}):
            run_jobs(folder, lines[:size], f"compiling{size}")
            together[size] = run_jobs(folder, lines[:size], f"job{size}")
        worst = 0.0
        for i in range(count):
            one, other = (
                Cartridge.load(folder / name / f"{name}.cartridge")
                for name in (f"alone-{i}", f"job{count}-{i}")
            )
            for a, b in ((one.keys, other.keys), (one.values, other.values)):
                worst = max(worst, float(np.abs(np.asarray(a) - np.asarray(b)).max()))
    result = {
        "settings": list(SETTINGS),
        "cartridges": count,
        "separate_s": round(sum(separate), 1),
        "separate_each_s": [round(f(separate), 2) for f in (min, np.median, max)],
        "one_job_s": {size: round(seconds, 1) for size, seconds in together.items()},
        "share_of_separate": round(together[count] / sum(separate), 4),
        "largest_difference": worst,
    }
    print(json.dumps(result, indent=2))
    write_result(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
