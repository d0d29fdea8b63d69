"""Prefill, decode and training steps compiled by the TPU compiler, for slices that are not there.

libtpu compiles for any topology without a TPU, and says what each device holds. Weights are shapes
with shardings; nothing is allocated. Compile one program at a time: libtpu takes a lock.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cartridges_jax.attention import Mask, attention
from cartridges_jax.cartridge import Cartridge, FrozenSlot, TrainableSlot
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.loss import Targets, distillation_loss
from cartridges_jax.distillation.step import PARTS, make_optimizer, make_train_step
from cartridges_jax.distillation.targets import TOP_J
from cartridges_jax.engine.decoding import DecodeState, advance_batch
from cartridges_jax.engine.sampling import Sampling
from cartridges_jax.models import int8
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.transformer import KV, Prefix, Transformer, abstract_transformer
from cartridges_jax.models.weights import Quantization
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT, head_axis, query_axis


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
      RuntimeError: from libtpu, if it is not installed or does not know the topology.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    axes = (AxisType.Explicit, AxisType.Explicit)
    used = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(used, (DATA, MODEL), axis_types=axes)


def _shape(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
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
        lambda x, spec: _shape(mesh, x.shape, x.dtype, *spec),
        nnx.as_pure(state),
        nnx.as_pure(specs),
    )
    return nnx.merge(nnx.graphdef(model), placed)


def _compile(jitted: Any, *args: Any, **static: Any) -> Compiled:
    started = time.perf_counter()
    compiled: Any = jitted.lower(*args, **static).compile()
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        seconds,
        compiled.as_text(),
    )


def compile_attention(
    mesh: Mesh,
    *,
    rows: int,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_slots: int,
    implementation: Any = "pallas",
    dtype: Any = jnp.bfloat16,
    free_layouts: bool = True,
) -> Compiled:
    """Compiles attention alone, forward and backward, of rows behind a prefix they share.

    Arguments and results have the layouts that the compiler likes best, as between the projections
    of a model; without `free_layouts` they lie as their axes are written, tokens before heads, and
    the copies out of that order and back into it are counted too.
    """

    def passes(q, k, v, prefix_k, prefix_v, d_out, segment_start):
        def forward(q, k, v, *prefix):
            return attention(
                q, k, v, Mask(segment_start), prefix=prefix, scale=head_dim**-0.5,
                implementation=implementation,
            )  # fmt: skip

        out, pull = jax.vjp(forward, q, k, v, prefix_k, prefix_v)
        return out, *pull(d_out)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        heads = head_axis(num_kv_heads)
        queries, keys = (
            _shape(mesh, (rows, num_tokens, n, head_dim), dtype, DATA, None, axis)
            for n, axis in (
                (num_heads, query_axis(num_heads, num_kv_heads)),
                (num_kv_heads, heads),
            )
        )
        slots = _shape(mesh, (num_slots, num_kv_heads, head_dim), dtype, None, heads)
        start = _shape(mesh, (rows, num_tokens), jnp.int32, *TOKENS_BT)
        arrays = (queries, keys, keys, slots, slots, queries, start)
        if not free_layouts:
            return _compile(jax.jit(passes), *arrays)
        free = [Format(Layout.AUTO, x.sharding) for x in arrays]
        jitted = jax.jit(passes, in_shardings=free, out_shardings=Format(Layout.AUTO))
        return _compile(jitted, *arrays)


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
        tokens = _shape(mesh, (rows, num_tokens), jnp.int32, *TOKENS_BT)
        model = abstract_model(config, mesh, dtype, quantization)
        return _compile(jax.jit(prefill), model, tokens, tokens, tokens)


def compile_decode(
    config: ModelConfig,
    mesh: Mesh,
    *,
    rows: int,
    cache_length: int,
    num_slots: int,
    dtype: Any = jnp.bfloat16,
    quantization: Quantization = "none",
) -> Compiled:
    """Compiles the decode loop of `engine.decoding`: `rows` rows behind one shared cartridge.

    The cache has room for `cache_length` tokens of each row, half of them still to be made.
    """
    L, K, H, V = config.num_layers, config.num_kv_heads, config.head_dim, config.vocab_size
    room = cache_length // 2
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        heads = head_axis(K)

        def cached(tokens: int, *batch: int) -> KV:
            """As `KV.as_cached` lays tokens of rows, or slots, out."""
            spec = (None, *(DATA for _ in batch), heads)
            shapes = ((L, *batch, K, H, tokens), (L, *batch, K, tokens, H))
            return KV(*(_shape(mesh, shape, dtype, *spec) for shape in shapes))

        scalar = _shape(mesh, (), jnp.int32)
        row = _shape(mesh, (rows,), jnp.int32, DATA)
        state = DecodeState(
            scalar,
            scalar,
            cached(cache_length, rows),
            _shape(mesh, (rows, V), jnp.float32, DATA, MODEL),
            _shape(mesh, (rows, room), jnp.int32, *TOKENS_BT),
            _shape(mesh, (rows, room), jnp.float32, *TOKENS_BT),
            _shape(mesh, (rows,), jnp.bool, DATA),
        )
        return _compile(
            advance_batch,
            abstract_model(config, mesh, dtype, quantization),
            Prefix(cached(num_slots), scalar, scalar),
            state,
            row,
            row,
            Sampling(),
            scalar,
            stop_ids=config.eos_token_ids,
            how="greedy",
        )


def compile_train_step(
    config: ModelConfig,
    mesh: Mesh,
    *,
    rows: int,
    row_length: int,
    num_slots: int,
    rows_at_once: int = 0,
    dtype: Any = jnp.bfloat16,
    fsdp: bool = False,
) -> Compiled:
    """Compiles a step of `distillation.train`: packed rows, float32 slots and Adam moments.

    Half of the tokens are targets, as with `loss_on="answers"`; of all tokens the loss takes twice
    the time and the same chunks of logits.
    """
    L, K, H = config.num_layers, config.num_kv_heads, config.head_dim
    B, T, M, J = rows, row_length, row_length // 2, TOP_J
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        slots = jax.ShapeDtypeStruct((L, num_slots, K, H), jnp.float32)
        cartridge = nnx.eval_shape(lambda k, v: Cartridge(k, v), slots, slots)
        graphdef, trainable, frozen = nnx.split(cartridge, TrainableSlot, FrozenSlot)
        optimizer: optax.GradientTransformation = make_optimizer(TrainConfig())
        moments = jax.eval_shape(optimizer.init, trainable)
        shapes = {
            "token_ids": ((B, T), jnp.int32),
            "positions": ((B, T), jnp.int32),
            "segment_start": ((B, T), jnp.int32),
            "target_index": ((B, M), jnp.int32),
            "target_weight": ((B, M), jnp.float32),
            "top_ids": ((B, M, J), jnp.int32),
            "top_logprobs": ((B, M, J), jnp.float32),
        }
        parts = (B // (rows_at_once or B), rows_at_once or B)
        batch = {
            name: _shape(mesh, (*parts, *shape[1:]), kind, *PARTS)
            for name, (shape, kind) in shapes.items()
        }
        heads = (None, None, head_axis(K), None)

        def place(x: Any) -> Any:
            return _shape(mesh, x.shape, x.dtype, *(heads if x.ndim == 4 else ()))

        state = jax.tree.map(place, (trainable, moments, frozen))
        step = make_train_step(graphdef, optimizer)
        model = abstract_model(config, mesh, dtype, fsdp=fsdp)
        return _compile(step, *state, model, batch)


def compile_loss(
    config: ModelConfig,
    mesh: Mesh,
    *,
    rows: int,
    row_length: int,
    targets_per_row: int,
    loss: Any = distillation_loss,
    dtype: Any = jnp.bfloat16,
) -> Compiled:
    """Compiles the loss with its gradient of the hidden states, the LM head being an argument.

    `loss` has the signature of `distillation_loss`.
    """

    def passes(model, hidden, targets):
        return jax.value_and_grad(lambda h: jnp.sum(loss(model, h, targets).loss))(hidden)

    B, T, M, D = rows, row_length, targets_per_row, config.hidden_size
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        targets = Targets(
            _shape(mesh, (B, M), jnp.int32, DATA),
            _shape(mesh, (B, M, TOP_J), jnp.int32, DATA),
            _shape(mesh, (B, M, TOP_J), jnp.float32, DATA),
            _shape(mesh, (B, M), jnp.float32, DATA),
        )
        hidden = _shape(mesh, (B, T, D), dtype, DATA)
        return _compile(jax.jit(passes), abstract_model(config, mesh, dtype), hidden, targets)
