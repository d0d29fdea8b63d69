"""Attention and loss alone, compiled by the TPU compiler; see `planning.compiler` for programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from cartridges_jax.attention import Mask, PagedKV, attention, paged_attention
from cartridges_jax.distillation.loss import Targets, distillation_loss
from cartridges_jax.distillation.targets import TOP_J
from cartridges_jax.engine.batch import LEAST_OWN_PAGES, decode_arrays
from cartridges_jax.engine.pages import PAGE
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.planning.compiler import Compiled, abstract_model, compiled, on_mesh
from cartridges_jax.shapes import power_of_two
from cartridges_jax.sharding import DATA, TOKENS_BT, head_axis, query_axis


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
            on_mesh(mesh, (rows, num_tokens, n, head_dim), dtype, DATA, None, axis)
            for n, axis in (
                (num_heads, query_axis(num_heads, num_kv_heads)),
                (num_kv_heads, heads),
            )
        )
        slots = on_mesh(mesh, (num_slots, num_kv_heads, head_dim), dtype, None, heads)
        start = on_mesh(mesh, (rows, num_tokens), jnp.int32, *TOKENS_BT)
        arrays = (queries, keys, keys, slots, slots, queries, start)
        if not free_layouts:
            return compiled(jax.jit(passes), *arrays)
        free = [Format(Layout.AUTO, x.sharding) for x in arrays]
        jitted = jax.jit(passes, in_shardings=free, out_shardings=Format(Layout.AUTO))
        return compiled(jitted, *arrays)


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
            on_mesh(mesh, (B, M), jnp.int32, DATA),
            on_mesh(mesh, (B, M, TOP_J), jnp.int32, DATA),
            on_mesh(mesh, (B, M, TOP_J), jnp.float32, DATA),
            on_mesh(mesh, (B, M), jnp.float32, DATA),
        )
        hidden = on_mesh(mesh, (B, T, D), dtype, DATA)
        return compiled(jax.jit(passes), abstract_model(config, mesh, dtype), hidden, targets)


def compile_paged_decode(
    mesh: Mesh, *, rows: int, row_tokens: int, num_slots: int, num_layers: int, num_heads: int,
    num_kv_heads: int, head_dim: int, dtype: Any = jnp.bfloat16,
) -> Compiled:  # fmt: skip
    """Compiles a decoding step's attention of one layer: rows behind one cartridge, over pages."""
    D = mesh.shape[DATA]
    of_row = -(-row_tokens // PAGE)
    pages = 1 + -(-num_slots // PAGE) + rows // D * of_row
    arrays = decode_arrays([None] * D, PAGE, rows // D, rows // D).step
    arrays = arrays._replace(
        own_pages=np.zeros((rows, power_of_two(of_row, LEAST_OWN_PAGES)), np.int32)
    )

    def attend(q, k, v, pool, layer, step):
        return paged_attention(q, k, v, pool, layer, step, scale=head_dim**-0.5)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        heads, query_heads = head_axis(num_kv_heads), query_axis(num_heads, num_kv_heads)
        q = on_mesh(mesh, (rows, 1, num_heads, head_dim), dtype, DATA, None, query_heads)
        k = on_mesh(mesh, (rows, 1, num_kv_heads, head_dim), dtype, DATA, None, heads)
        shape = (num_layers, D * pages, num_kv_heads, PAGE, head_dim)
        pool = on_mesh(mesh, shape, dtype, None, DATA, heads)
        step = jax.tree.map(lambda x: on_mesh(mesh, x.shape, x.dtype, DATA), arrays)
        return compiled(
            jax.jit(attend, donate_argnums=3), q, k, k, PagedKV(pool, pool),
            on_mesh(mesh, (), jnp.int32), step,
        )  # fmt: skip
