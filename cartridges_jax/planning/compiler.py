"""Prefill, decode and training steps compiled by the TPU compiler, for slices that are not there.

libtpu compiles for any topology without a TPU, and says what each device holds. Weights are shapes
with shardings; nothing is allocated.
"""

import dataclasses
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cartridges_jax.attention import PagedKV
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.step import (
    abstract_batch,
    abstract_places,
    graph_of,
    make_train_step,
)
from cartridges_jax.distillation.targets import TOP_J
from cartridges_jax.engine.batch import LEAST_OWN_PAGES, decode_arrays
from cartridges_jax.engine.pages import PAGE
from cartridges_jax.engine.steps import State, Weights, decode
from cartridges_jax.models import int8
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.transformer import Transformer, abstract_transformer
from cartridges_jax.models.weights import Quantization
from cartridges_jax.shapes import power_of_two
from cartridges_jax.sharding import DATA, TOKENS_BT, head_axis, make_mesh

# What libtpu would else ask a cloud for, and complain that nobody answers; and several processes
# may compile at a time.
_NO_CLOUD = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, in bytes for each device."""

    argument_bytes: int  # weights, caches, batches
    temporary_bytes: int
    output_bytes: int  # without what is written over an argument
    compile_s: float
    text: str  # HLO

    @property
    def hbm_bytes(self) -> int:
        """Memory of a device while the program runs, code not counted."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes


def slice_mesh(topology: str, data: int, model: int) -> Mesh:
    """Returns a (data, model) mesh over the first devices of a TPU slice such as "v5e:4x4".

    Raises:
      InputError: if there are fewer devices.
      RuntimeError: from libtpu, if it is not installed or does not know the topology.
    """
    for name, value in _NO_CLOUD.items():
        os.environ.setdefault(name, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return make_mesh(data, model, devices)


def on_mesh(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
    """The shape of an array that lives on a mesh."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))


def abstract_model(
    config: ModelConfig,
    mesh: Mesh,
    dtype: Any,
    quantization: Quantization = "none",
    fsdp: bool = False,
) -> Transformer:
    """The model as shapes that know where they live on `mesh`; call it under that mesh."""
    model = abstract_transformer(config, dtype, fsdp=fsdp)
    if quantization == "int8":
        model = nnx.eval_shape(int8.quantize_all, model)

    def is_variable(x: Any) -> bool:
        return isinstance(x, nnx.Variable)

    state = nnx.state(model)
    specs = jax.tree.map(lambda v: v.get_metadata()["spec"], state, is_leaf=is_variable)
    placed = jax.tree.map(
        lambda x, spec: on_mesh(mesh, x.shape, x.dtype, *spec),
        nnx.as_pure(state),
        nnx.as_pure(specs),
    )
    return nnx.merge(nnx.graphdef(model), placed)


def compiled(jitted: Any, *args: Any, **static: Any) -> Compiled:
    """Compiles a jitted function for shapes; jax's own error where it does not fit."""
    started = time.perf_counter()
    program: Any = jitted.lower(*args, **static).compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        seconds,
        program.as_text(),
    )


def compile_prefill(
    config: ModelConfig,
    mesh: Mesh,
    *,
    rows: int,
    num_tokens: int,
    dtype: Any = jnp.bfloat16,
    quantization: Quantization = "none",
) -> Compiled:
    """Compiles the reading of `rows` texts: their KV, and the logits of their last tokens."""

    def prefill(model, token_ids, positions, segment_start):
        hidden, kv = model(token_ids, positions, segment_start)
        return model.logits(hidden[:, -1:]), kv

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        tokens = on_mesh(mesh, (rows, num_tokens), jnp.int32, *TOKENS_BT)
        model = abstract_model(config, mesh, dtype, quantization)
        return compiled(jax.jit(prefill), model, tokens, tokens, tokens)


def compile_decode(
    config: ModelConfig,
    mesh: Mesh,
    *,
    rows: int,
    row_tokens: int,
    num_slots: int,
    dtype: Any = jnp.bfloat16,
    quantization: Quantization = "none",
) -> Compiled:
    """Compiles a decoding step of the engine: `rows` rows behind one cartridge.

    The pool has pages for the cartridge and for `row_tokens` tokens of each row.
    """
    D = mesh.shape[DATA]
    of_row = -(-row_tokens // PAGE)
    pages = 1 + -(-num_slots // PAGE) + rows // D * of_row
    step = decode_arrays([None] * D, PAGE, rows // D, rows // D)
    tables = np.zeros((rows, power_of_two(of_row, LEAST_OWN_PAGES)), np.int32)
    step = step._replace(step=step.step._replace(own_pages=tables))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        model = abstract_model(config, mesh, dtype, quantization)
        return compiled(
            decode, Weights(model), *abstract_step(config, mesh, pages, rows // D, step, dtype)
        )


def abstract_step(
    config: ModelConfig, mesh: Mesh, pages: int, rows: int, arrays: Any, dtype: Any
) -> tuple[State, Any]:
    """The engine's state with so many pages and rows a device group, and a step's arrays."""
    L, K, H, D = config.num_layers, config.num_kv_heads, config.head_dim, mesh.shape[DATA]
    pool = on_mesh(mesh, (L, D * pages, K, PAGE, H), dtype, None, DATA, head_axis(K))
    state = State(PagedKV(pool, pool), on_mesh(mesh, (D * (rows + 1),), jnp.int32, DATA))

    def on_it(x: Any) -> Any:
        return on_mesh(mesh, x.shape, x.dtype, *((DATA,) if np.ndim(x) else ()))

    return state, jax.tree.map(on_it, arrays)


def compile_train_step(
    config: ModelConfig,
    mesh: Mesh,
    training: TrainConfig,
    *,
    cartridges: int = 1,
    dtype: Any = jnp.bfloat16,
    quantization: Quantization = "none",
    fsdp: bool = False,
    save_products: bool | None = None,
) -> Compiled:
    """Compiles the step of `distillation.train` for so many cartridges."""
    top = min(TOP_J, config.vocab_size)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        places = abstract_places(config, training, cartridges, mesh)
        batch = abstract_batch(training, cartridges, top, mesh)
        model = abstract_model(config, mesh, dtype, quantization, fsdp)
        step = make_train_step(graph_of(training), training.loss, save_products)
        return compiled(step, *places, model, batch)
