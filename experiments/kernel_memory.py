"""Memory of attention, loss and a training step on TPU by its compiler; bytes the kernels move.

    python -m experiments.kernel_memory

No TPU and no weights are needed. Attention alone, forward and backward, of 4 rows of 2,048 tokens
of Llama-3.1-8B behind 2,048 slots, one device; the loss alone and a whole training step of
Llama-3.1-8B on a v5e slice of 4x4, with our kernels, with the blocked and the reference attention
and with the logits of all targets or tokens at once; bytes moved by both kernels at four shapes,
counted from their grids; and the VMEM that each kernel needs, chip by chip. Some sixteen minutes on
two CPU cores. The result is committed as experiments/results/kernel_memory.json.
"""

import contextlib
import dataclasses
import functools
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import PartitionSpec as P

from cartridges_jax.attention import attention
from cartridges_jax.attention.pallas_tpu.plan import Plan, make_plan, sizes_of_chip
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.lm_head import gather_positions
from cartridges_jax.distillation.loss import LossSums
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.planning.compiler import Compiled, compile_train_step, slice_mesh
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT
from experiments import kernel_traffic
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_2_1B, LLAMA_3_2_3B, QWEN3_4B
from experiments.record import write_result
from experiments.tpu_parts import compile_attention, compile_loss

_OUT = flags.DEFINE_string("out", "experiments/results/kernel_memory.json", "Result file.")

MIB = 2**20
ROWS, TOKENS, SLOTS = 4, 2048, 2048
STEP = {"rows": 8, "row_length": 2048}  # 16,384 tokens
SHAPES = {
    "Llama-3.2-1B": LLAMA_3_2_1B,
    "Llama-3.2-3B": LLAMA_3_2_3B,
    "Llama-3.1-8B": LLAMA_3_1_8B,
    "Qwen3-4B": QWEN3_4B,
}
TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "v5p:2x2x1", "tpu7x:2x2x1")
CHIPS = {  # published peaks of a device: bfloat16 FLOP/s, bytes of HBM a second; tpu7x has two
    "v5e": (197e12, 819e9),
    "v6e": (918e12, 1640e9),
    "v5p": (459e12, 2765e9),
    "tpu7x": (1153e12, 3690e9),
}


def measured(what: dict[str, Any], compile_it: Any) -> dict[str, Any]:
    try:
        found: Compiled = compile_it()
    except jax.errors.JaxRuntimeError as error:  # most often: out of memory
        row = what | {"error": str(error).split("\n")[0][:200]}
    else:
        row = what | {
            "temporary_mib": round(found.temporary_bytes / MIB, 1),
            "hbm_mib": round(found.hbm_bytes / MIB, 1),
            "compile_s": round(found.compile_s, 1),
        }
    print(row, flush=True)
    return row


def attention_rows() -> list[dict[str, Any]]:
    """Attention alone; also where its arguments lie tokens first and the kernels' must be made."""
    c, rows = LLAMA_3_1_8B, []
    forms = (("pallas", True), ("pallas", False), ("blocked", True), ("reference", True))
    for topology in TOPOLOGIES:
        for implementation, free_layouts in forms:
            compile_it = functools.partial(
                compile_attention, slice_mesh(topology, 1, 1), rows=ROWS, num_tokens=TOKENS,
                num_heads=c.num_heads, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim,
                num_slots=SLOTS, implementation=implementation, free_layouts=free_layouts,
            )  # fmt: skip
            what = {
                "chip": topology.split(":")[0],
                "implementation": implementation,
                "layouts": "the compiler's choice" if free_layouts else "tokens first",
            }
            rows.append(measured(what, compile_it))
    return rows


def vmem_needed(topology: str, config: ModelConfig, tokens: int, slots: int) -> dict[str, float]:
    """MiB of VMEM by kernel: what Mosaic asks for if a limit is too low, raised until none is."""
    limits = {"forward": MIB // 2, "backward": MIB // 2}

    def limited(*args: Any, backward: bool, **options: Any) -> Plan:
        plan = make_plan(*args, backward=backward, **options)
        return dataclasses.replace(plan, vmem=limits["backward" if backward else "forward"])

    needed: dict[str, float] = {}
    while True:
        try:
            with mock.patch("cartridges_jax.attention.pallas_tpu.make_plan", limited):
                compile_attention(
                    slice_mesh(topology, 1, 1), rows=1, num_tokens=tokens, num_slots=slots,
                    num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
                    head_dim=config.head_dim,
                )  # fmt: skip
            return needed
        except jax.errors.JaxRuntimeError as error:
            told = r"for %(\w+)_kernel.*Scoped allocation with size ([\d.]+)([KM]) and limit"
            match = re.search(told, str(error), re.DOTALL)
            if match is None:
                raise
            kernel, size = match[1], float(match[2]) / {"K": 1024, "M": 1}[match[3]]
            needed[kernel] = round(size, 2)
            limits[kernel] = int((size + 0.5) * MIB)


def vmem_rows() -> list[dict[str, Any]]:
    """VMEM that the kernels need beside what `attention.pallas_tpu.plan.SIZES` lets them have."""
    rows = []
    for topology in (*TOPOLOGIES, "v4:2x2x1"):
        mesh = slice_mesh(topology, 1, 1)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            sizes = sizes_of_chip()
        for name, config in SHAPES.items():
            for tokens, slots in ((TOKENS, SLOTS), (4 * TOKENS, 4 * SLOTS)):
                needed = vmem_needed(topology, config, tokens, slots)
                row = {
                    "chip": topology.split(":")[0], "model": name, "tokens": tokens, "slots": slots,
                    "limit_mib": sizes.vmem // MIB, "needed_mib": needed,
                }  # fmt: skip
                print(row, flush=True)
                rows.append(row)
    return rows


def full_logits_loss(
    model: Any, hidden: Any, targets: Any, kind: str = "top_j", *, of_all_tokens: bool = False
) -> LossSums:
    """What `distillation_loss` computes, from the logits of all targets, or all tokens, at once."""
    del kind
    if of_all_tokens:
        words = P(DATA, None, MODEL)
        logits = jax.shard_map(
            lambda logits, index: jnp.take_along_axis(logits, index[..., None], axis=1),
            in_specs=(words, TOKENS_BT), out_specs=words,
        )(model.logits(hidden), targets.index)  # fmt: skip
    else:
        logits = model.logits(gather_positions(hidden, targets.index))
    logq = jax.nn.log_softmax(logits)
    p = jnp.exp(targets.top_logprobs) * targets.weight[..., None]
    loss = jnp.zeros(len(logq))
    for j in range(targets.top_ids.shape[-1]):
        chosen = jnp.arange(logq.shape[-1]) == targets.top_ids[..., j, None]
        loss -= jnp.sum(jnp.where(chosen, logq * p[..., j, None], 0.0), axis=(1, 2))
    return LossSums(loss, loss, jnp.sum(targets.weight, axis=1))


def step_rows() -> list[dict[str, Any]]:
    """The loss alone, and whole training steps, of Llama-3.1-8B on 16 v5e chips."""
    mesh = slice_mesh("v5e:4x4", data=4, model=4)
    loss = functools.partial(
        compile_loss, LLAMA_3_1_8B, mesh, **STEP, targets_per_row=STEP["row_length"] // 2
    )
    local_logits = STEP["rows"] // 4 * STEP["row_length"] * LLAMA_3_1_8B.vocab_size // 4 * 4
    of_all_tokens = functools.partial(full_logits_loss, of_all_tokens=True)
    rows = [
        measured({"program": "loss", "form": "in chunks", "local_logits_mib": local_logits / MIB},
                 loss),
        measured({"program": "loss", "form": "logits of targets"},
                 functools.partial(loss, loss=full_logits_loss)),
        measured({"program": "loss", "form": "logits of all tokens"},
                 functools.partial(loss, loss=of_all_tokens)),
    ]  # fmt: skip
    training = TrainConfig(
        num_slots=SLOTS, rows_per_step=STEP["rows"], row_length=STEP["row_length"]
    )
    step = functools.partial(compile_train_step, LLAMA_3_1_8B, mesh, training)
    reference = functools.partial(attention, implementation="reference")
    blocked = functools.partial(attention, implementation="blocked")
    loss_of_step = "cartridges_jax.distillation.step.distillation_loss"
    forms = {
        "our kernels": [],
        "blocked attention": [("cartridges_jax.models.transformer.attention", blocked)],
        "reference attention": [("cartridges_jax.models.transformer.attention", reference)],
        "logits of targets": [(loss_of_step, full_logits_loss)],
        "logits of all tokens": [(loss_of_step, of_all_tokens)],
    }
    for form, patches in forms.items():
        with contextlib.ExitStack() as stack:
            for name, other in patches:
                stack.enter_context(mock.patch(name, other))
            rows.append(measured({"program": "training step", "form": form}, step))
    return rows


def traffic_rows() -> list[dict[str, Any]]:
    """Bytes between HBM and VMEM, beside reading every input once; and what bounds the kernels."""
    rows = []
    for name, config in SHAPES.items():
        found = kernel_traffic.calls_of(
            ROWS, TOKENS, SLOTS, config.num_heads, config.num_kv_heads, config.head_dim
        )
        for direction, calls in found.items():
            once = sum(x.size * x.dtype.itemsize for x, _ in calls[0].inputs)
            read = sum(map(kernel_traffic.bytes_read, calls))
            written = sum(map(kernel_traffic.bytes_written, calls))
            pairs = ROWS * config.num_heads * TOKENS * (SLOTS + (TOKENS + 1) / 2)
            flops = 2 * calls[0].products * pairs * config.head_dim
            row = {
                "model": name, "direction": direction,
                "read_mib": round(read / MIB, 1), "written_mib": round(written / MIB, 1),
                "read_once_mib": round(once / MIB, 1), "ratio": round(read / once, 3),
                "visible_gflop": round(flops / 1e9),
                "limit_ms": {
                    chip: {"products": round(flops / peak * 1e3, 2),
                           "memory": round((read + written) / hbm * 1e3, 2)}
                    for chip, (peak, hbm) in CHIPS.items()
                },
            }  # fmt: skip
            print(row, flush=True)
            rows.append(row)
    return rows


def main(_) -> None:
    result = {
        "attention_shape": {"rows": ROWS, "tokens": TOKENS, "slots": SLOTS, "N": 32, "K": 8,
                            "H": 128, "dtype": "bfloat16"},
        "traffic": traffic_rows(), "vmem": vmem_rows(), "attention": attention_rows(),
        "v5e_4x4": step_rows(),
    }  # fmt: skip
    write_result(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
