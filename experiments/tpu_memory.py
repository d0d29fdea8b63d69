"""What large models need on 16 TPU devices, by the TPU compiler; no TPU and no weights are needed.

    python -m experiments.tpu_memory

Prefill of 8,192 tokens in each of two rows, and the decode loop of 64 rows behind one cartridge of
2,048 slots, for three published shapes, on a mesh of 2 x 8 (their 8 kv heads go over "model").
About four minutes on two CPU cores. The result is committed as
experiments/results/tpu_memory.json.
"""

import dataclasses
import functools
from typing import Any

import jax
from absl import app, flags

from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.weights import Quantization
from cartridges_jax.planning.compiler import (
    Compiled,
    compile_decode,
    compile_prefill,
    slice_mesh,
)
from experiments.model_shapes import LLAMA_3_1_8B, LLAMA_3_1_70B, QWEN3_32B
from experiments.record import write_result

_OUT = flags.DEFINE_string("out", "experiments/results/tpu_memory.json", "Result file.")

GIB = 2**30
HBM_GIB = {"v5e": 16, "v6e": 32, "v5p": 95}  # of one chip; published figures
CASES: tuple[tuple[str, ModelConfig, Quantization, str], ...] = (  # ..., slice
    ("Llama-3.1-8B", LLAMA_3_1_8B, "none", "v5e:4x4"),
    ("Qwen3-32B", QWEN3_32B, "none", "v5e:4x4"),
    ("Llama-3.1-70B", LLAMA_3_1_70B, "int8", "v5e:4x4"),
    ("Llama-3.1-70B", LLAMA_3_1_70B, "none", "v6e:4x4"),
    ("Llama-3.1-70B", LLAMA_3_1_70B, "none", "v5p:2x2x4"),
)
PREFILL = {"rows": 2, "num_tokens": 8192}
DECODE = {"rows": 64, "row_tokens": 1024, "num_slots": 2048}


def row(program: Compiled, chip: str) -> dict[str, float | bool]:
    sizes = dataclasses.asdict(program)
    gib = {k.replace("bytes", "gib"): round(v / GIB, 3) for k, v in sizes.items() if "bytes" in k}
    hbm = program.hbm_bytes / GIB
    return gib | {
        "hbm_gib": round(hbm, 3),
        "chip_gib": HBM_GIB[chip],
        "fits": hbm < HBM_GIB[chip],
        "compile_s": round(program.compile_s, 1),
    }


def main(_) -> None:
    table = []
    for name, config, quantization, topology in CASES:
        mesh = slice_mesh(topology, data=2, model=8)
        shared = {"model": name, "quantization": quantization, "slice": topology, "mesh": "2x8"}
        options: dict[str, Any] = {"quantization": quantization}
        programs = {
            "prefill": functools.partial(compile_prefill, config, mesh, **PREFILL, **options),
            "decode": functools.partial(compile_decode, config, mesh, **DECODE, **options),
        }
        for program, compile_it in programs.items():
            entry: dict[str, Any] = shared | {"program": program}
            try:
                entry |= row(compile_it(), topology.split(":")[0])
            except jax.errors.JaxRuntimeError as error:  # most often: out of memory
                entry |= {"fits": False, "error": str(error).split("\n")[0][:200]}
            table.append(entry)
            print(entry, flush=True)
            write_result(_OUT.value, {"prefill": PREFILL, "decode": DECODE, "programs": table})


if __name__ == "__main__":
    app.run(main)
