"""Host memory while a checkpoint of 1B parameters is loaded, and the time it takes.

    python -m experiments.benchmarks.loading

Writes a random bfloat16 checkpoint with the shape of Llama-3.2-1B in four files (2.3 GiB, in a
temporary folder), loads it in a process of its own onto one device, and samples that process's
anonymous memory (RssAnon of /proc/self/status) every 2 ms; pages of the files themselves are not
anonymous. About one minute. The result is committed as experiments/results/loading.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import app, flags
from etils import epath

from cartridges_jax.models import config as model_config
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.weights import read_weights, tensor_shapes
from cartridges_jax.sharding import make_mesh
from experiments.benchmarks.measure import PeakMemory, anonymous_bytes
from experiments.export import config_fields
from experiments.model_shapes import LLAMA_3_2_1B
from experiments.record import write_result

_OUT = flags.DEFINE_string("out", "experiments/results/loading.json", "Result file.")
_FOLDER = flags.DEFINE_string("folder", None, "Only load this checkpoint and print the figures.")
_QUANTIZATION = flags.DEFINE_enum("quantization", "none", ("none", "int8"), "How it is loaded.")

FILES = 4


def write_checkpoint(folder: epath.Path) -> int:
    """Writes random weights in the Hugging Face layout; returns their bytes."""
    fields = config_fields(LLAMA_3_2_1B) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(fields))
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(2**20, np.float32) * 0.02).astype(jnp.bfloat16)
    shapes = tensor_shapes(LLAMA_3_2_1B)
    names, weight_map, total = sorted(shapes), {}, 0
    for i in range(FILES):
        part = {}
        for name in names[i::FILES]:
            size = int(np.prod(shapes[name]))
            part[name] = np.resize(noise, size).reshape(shapes[name])
        file = f"model-{i + 1:05}-of-{FILES:05}.safetensors"
        safetensors.numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
        total += sum(x.nbytes for x in part.values())
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return total


def load_and_watch(folder: str) -> dict[str, float]:
    """Loads in this process; returns its peak and the time."""
    mesh, config = make_mesh(1, 1), model_config.read_config(folder)
    jnp.zeros(8).block_until_ready()
    quantization = "int8" if _QUANTIZATION.value == "int8" else "none"
    with PeakMemory() as memory:
        started = time.perf_counter()
        model = read_weights(
            FolderSource(folder).tensors(), folder, config, mesh, jnp.bfloat16, quantization
        )
        jax.block_until_ready(jax.tree.leaves(model))
        took = time.perf_counter() - started
    held = anonymous_bytes() - memory.before
    return {"peak_bytes": memory.peak - memory.before, "held_bytes": held, "seconds": took}


def main(_) -> None:
    if _FOLDER.value:
        print(json.dumps(load_and_watch(_FOLDER.value)))
        return
    result: dict = {"files": FILES, "model": "shape of Llama-3.2-1B, bfloat16, random"}
    with tempfile.TemporaryDirectory() as folder:
        size = write_checkpoint(epath.Path(folder))
        result["checkpoint_bytes"] = size
        for quantization in ("none", "int8"):
            command = [sys.executable, "-m", "experiments.benchmarks.loading", f"--folder={folder}"]
            run = subprocess.run(
                [*command, f"--quantization={quantization}"],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            found = json.loads(run.stdout.splitlines()[-1])
            found["peak_over_size"] = found["peak_bytes"] / size
            result[quantization] = found
            print(quantization, {k: round(v, 3) for k, v in found.items()})
    write_result(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
