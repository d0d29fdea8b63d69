"""Training steps of published models, compiled for slices that are not here.

    python -m experiments.tpu_steps

For each model and slice the layout that `planning` chooses for the paper's step (2,048 slots, rows
of 2,048 tokens, 32 rows or one a device): whether it fits, a device's memory by the compiler, what
devices send each other, what the compiler took, and the tokens a second and chip that peaks allow.
Also one step of 64 cartridges. Some fifteen minutes on one CPU core. The result is committed as
experiments/results/tpu_steps.json.
"""

import json
from typing import Any

from absl import app, flags

from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.errors import InputError
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.planning import tell
from cartridges_jax.planning.chips import parse_slice
from cartridges_jax.planning.plan import USUAL_SHARE, Asked, plan
from cartridges_jax.presets import preset
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_1_70B, LLAMA_3_2_3B, QWEN3_32B
from experiments.record import write_result

_OUT = flags.DEFINE_string("out", "experiments/results/tpu_steps.json", "Result file.")

CASES: tuple[tuple[str, ModelConfig, str, int], ...] = (  # ..., slice, cartridges
    ("Llama-3.2-3B", LLAMA_3_2_3B, "v5e-4", 1),
    ("Llama-3.2-3B", LLAMA_3_2_3B, "v6e-1", 1),
    ("Llama-3.1-8B", LLAMA_3_1_8B, "v5e-16", 1),
    ("Llama-3.1-8B", LLAMA_3_1_8B, "v6e-8", 1),
    ("Llama-3.1-8B", LLAMA_3_1_8B, "tpu7x-8", 1),
    ("Qwen3-32B", QWEN3_32B, "v6e-16", 1),
    ("Llama-3.1-70B", LLAMA_3_1_70B, "v5p-64", 1),
    ("Llama-3.1-70B", LLAMA_3_1_70B, "v6e-64", 1),
    ("Llama-3.1-8B", LLAMA_3_1_8B, "v5e-256", 1),
    ("Llama-3.2-3B", LLAMA_3_2_3B, "v5e-16", 64),
)


def settings(devices: int, cartridges: int) -> TrainConfig:
    """The paper's step, with a row for each device at least; of many cartridges two rows each."""
    if cartridges > 1:
        return preset(TrainConfig, "paper", num_slots=512, rows_per_step=2)
    return preset(TrainConfig, "paper", rows_per_step=max(32, devices))


def row(name: str, config: ModelConfig, slice_name: str, cartridges: int) -> dict[str, Any]:
    where = parse_slice(slice_name)
    asked = Asked(config, settings(where.devices, cartridges), cartridges)
    named = {"model": name, "rows": asked.training.rows_per_step * cartridges}
    try:
        found = plan(asked, where)
    except InputError as error:
        return named | {"slice": slice_name, "fits": False, "reason": str(error)}
    lines, fields = tell.training(asked, found, USUAL_SHARE, None)
    print(name, *lines, sep="\n", flush=True)
    weights = 2 * config.num_params()
    fields["largest_gather_of_weights"] = found.compiled["largest_gather_bytes"] / weights
    return named | fields


def main(_) -> None:
    rows: list[dict[str, Any]] = []
    for case in CASES:
        rows.append(row(*case))
        write_result(_OUT.value, {"share": USUAL_SHARE, "steps": json.loads(json.dumps(rows))})


if __name__ == "__main__":
    app.run(main)
