"""What runs on a TPU pod, compiled by the TPU compiler for 16 chips; no TPU is needed.

Compiles serially in one process: libtpu takes a lock.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

pytest.importorskip("libtpu", reason="the extra `tpu` is not installed: no TPU compiler")
from jax.experimental import topologies

from cartridges_jax.cartridge import Cartridge, FrozenSlot, TrainableSlot
from cartridges_jax.distillation.train import TrainConfig, make_optimizer, make_train_step
from cartridges_jax.models.config import Llama3Scaling, ModelConfig
from cartridges_jax.models.transformer import KV, Prefix, abstract_transformer
from cartridges_jax.sharding import DATA, MODEL, head_axis

LLAMA_1B = ModelConfig(
    vocab_size=128_256, hidden_size=2048, mlp_size=8192, num_layers=16, num_heads=32,
    num_kv_heads=8, head_dim=64, norm_eps=1e-5, rope_theta=5e5,
    rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192), tie_embeddings=True,
    max_position_embeddings=131_072, bos_token_id=128_000, eos_token_ids=(128_009,),
)  # fmt: skip
SLOTS, ROWS, T = 2048, 16, 2048
GIB = 2**30


@pytest.fixture(scope="module")
def mesh():
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
    axes = (AxisType.Explicit, AxisType.Explicit)
    return Mesh(np.array(devices).reshape(8, 2), (DATA, MODEL), axis_types=axes)


def abstract(mesh, tree, spec=None):
    """Shapes with shardings: each variable's own spec, or the given one."""

    def leaf(x, where):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where))

    if spec is not None:
        return jax.tree.map(lambda x: leaf(x, spec), tree)

    def is_variable(x):
        return isinstance(x, nnx.Variable)

    specs = jax.tree.map(lambda v: v.get_metadata()["spec"], nnx.state(tree), is_leaf=is_variable)
    state = jax.tree.map(leaf, nnx.as_pure(nnx.state(tree)), nnx.as_pure(specs))
    return nnx.merge(nnx.graphdef(tree), state)


def test_a_training_step_of_a_1b_model_fits_16_chips(mesh):
    """32,768 tokens a step, 2,048 slots, bfloat16 base, float32 slots: under 16 GiB a v5e chip."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        base = abstract(mesh, abstract_transformer(LLAMA_1B, jnp.bfloat16))
        slots = jax.ShapeDtypeStruct((16, SLOTS, 8, 64), jnp.float32)
        cartridge = nnx.eval_shape(lambda k, v: Cartridge(k, v), slots, slots)
        graphdef, trainable, frozen = nnx.split(cartridge, TrainableSlot, FrozenSlot)
        optimizer = make_optimizer(TrainConfig())
        heads = P(None, None, head_axis(8), None)
        moments = jax.eval_shape(optimizer.init, trainable)
        M, J = T // 2, 20
        batch = {
            "token_ids": ((ROWS, T), jnp.int32),
            "positions": ((ROWS, T), jnp.int32),
            "segment_start": ((ROWS, T), jnp.int32),
            "target_index": ((ROWS, M), jnp.int32),
            "target_weight": ((ROWS, M), jnp.float32),
            "top_ids": ((ROWS, M, J), jnp.int32),
            "top_logprobs": ((ROWS, M, J), jnp.float32),
        }
        rows = {
            k: jax.ShapeDtypeStruct(*v, sharding=NamedSharding(mesh, P(DATA)))
            for k, v in batch.items()
        }

        def place(x):
            where = NamedSharding(mesh, heads if x.ndim == 4 else P())
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        step = make_train_step(graphdef, optimizer)
        lowered = step.lower(*jax.tree.map(place, (trainable, moments, frozen)), base, rows)
        compiled = lowered.compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert 1.0 * GIB < used < 16 * GIB, f"{used / GIB:.2f} GiB"
    assert "all-reduce" in compiled.as_text()  # the prefix gradient is summed over rows


def test_a_decode_step_of_a_1b_model_compiles(mesh):
    """64 rows share one cartridge: it is read once, not once a row."""
    rows, length = 64, 1024
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        base = abstract(mesh, abstract_transformer(LLAMA_1B, jnp.bfloat16))
        heads = head_axis(8)
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
        cache = abstract(
            mesh, KV(*[shape((16, rows, length, 8, 64))] * 2), P(None, DATA, None, heads)
        )
        slots = abstract(mesh, KV(*[shape((16, SLOTS, 8, 64))] * 2), P(None, None, heads))
        scalar = abstract(mesh, jax.ShapeDtypeStruct((), jnp.int32), P())
        column = abstract(mesh, jax.ShapeDtypeStruct((rows, 1), jnp.int32), P(DATA, None))

        def step(base, cache, prefix, token, position, start, offset):
            hidden, cache = base.decode(token, position, start, cache, offset, prefix=prefix)
            return base.logits(hidden), cache

        args = (base, cache, Prefix(slots, scalar, scalar), column, column, column, scalar)
        compiled = jax.jit(step, donate_argnums=1).lower(*args).compile()
    memory = compiled.memory_analysis()
    cache_bytes = 2 * 16 * rows * length * 8 * 64 * 2 / 16
    assert memory.temp_size_in_bytes < 0.5 * cache_bytes + 0.5 * GIB  # the cache is not copied
