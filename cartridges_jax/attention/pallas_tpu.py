"""Attention on TPU: Pallas kernels for a prefix that all rows share and packed, causal rows.

Four kernels, one forward and three backward. Keys are visited in blocks, first the prefix's, then
the row's own; blocks with no visible key are neither computed nor moved (their index map names the
block that is there already). The heads of a group are folded into the query block, so keys are read
once for all of them, and scores are kept transposed, [keys, group * queries]: what belongs to a
query then lies along lanes. The gradient of a shared prefix is summed over rows and queries in
float32 inside its kernel.

Time grows with B * N * T * (P + visible row keys) * H. Memory beside inputs, outputs and gradients:
one float32 per query and head (the log-sum-exp), the same again in the backward pass, and copies of
queries, keys and values with heads before tokens. Figures of the design: WORKSPACE.md.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.reference import NEG_INF

LANES = 128
FOLDED_QUERIES = 1024  # group * queries of a block
KEY_BLOCK = 512
VMEM_LIMIT = 48 * 2**20  # bytes; what XLA leaves by default is too little for H = 256


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks: queries and keys of a step."""

    queries: int
    keys: int


def default_blocks(num_queries: int, group: int, head_dim: int) -> Blocks:
    """Chooses block sizes for one device's shapes.

    A step holds about 4 float32 arrays of [keys, group * queries] (scores, weights and their
    gradients): 8 MiB at 512 x 1024, and double-buffered blocks of [1024 + 2 * 512, head_dim].
    Heads of 256 halve the keys.
    """
    longest = -(-num_queries // LANES) * LANES
    queries = max(LANES, FOLDED_QUERIES // group // LANES * LANES)
    keys = KEY_BLOCK if head_dim <= 128 else KEY_BLOCK // 2
    return Blocks(min(queries, longest), min(keys, longest))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything static about a call, after padding."""

    B: int
    T: int  # padded to both blocks
    P: int  # padded to the key block
    K: int
    G: int
    H: int
    blocks: Blocks
    scale: float
    shared: bool  # one prefix for all rows
    interpret: bool

    @property
    def query_blocks(self) -> int:
        return self.T // self.blocks.queries

    @property
    def row_blocks(self) -> int:
        return self.T // self.blocks.keys

    @property
    def prefix_blocks(self) -> int:
        return self.P // self.blocks.keys

    @property
    def folded(self) -> int:
        return self.G * self.blocks.queries


def _pad(x: jax.Array, axis: int, size: int) -> jax.Array:
    if x.shape[axis] == size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Arrays as the kernels take them: heads before tokens, padded to blocks."""

    q: jax.Array  # [B, K, G, T, H]
    k: jax.Array  # [B, K, T, H]
    v: jax.Array
    prefix_k: jax.Array  # [1 or B, K, P, H]
    prefix_v: jax.Array
    segment_start: jax.Array  # [B, 1, T] int32
    scalars: tuple[jax.Array, ...]  # first visible key block [B, T / bq], prefix length [B]


def _prepare(q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks, interpret):
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    blocks = blocks or default_blocks(T, G, H)
    padded = _round_up(T, max(blocks.queries, blocks.keys))
    if padded % blocks.queries or padded % blocks.keys:
        padded = _round_up(T, blocks.queries * blocks.keys)
    slots = max(blocks.keys, _round_up(prefix_k.shape[-3], blocks.keys))  # no empty blocks
    shared = prefix_k.ndim == 3
    plan = _Plan(B, padded, slots, K, G, H, blocks, scale, shared, interpret)
    # A padding query sees itself alone: its row of weights is finite and its gradient zero.
    own = jnp.broadcast_to(jnp.arange(padded, dtype=jnp.int32), (B, padded))
    start = jnp.where(own < T, _pad(segment_start, 1, padded), own)
    first = start.reshape(B, plan.query_blocks, blocks.queries).min(-1) // blocks.keys
    length = jnp.broadcast_to(jnp.asarray(prefix_length, jnp.int32), (B,))

    def heads_first(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, -2, -3)

    def slots_first(x: jax.Array) -> jax.Array:
        x = _pad(heads_first(x), -2 % x.ndim, slots)
        return x[None] if shared else x

    folded = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    arrays = _Inputs(
        _pad(folded, 3, padded),
        _pad(heads_first(k), 2, padded),
        _pad(heads_first(v), 2, padded),
        slots_first(prefix_k),
        slots_first(prefix_v),
        start[:, None],
        (first, length),
    )
    return plan, arrays


# ---- pieces of the kernels


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each with float32 sums."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _folded_queries(ref: Any, plan: _Plan) -> jax.Array:
    """A block [1, 1, G, bq, H] as [G * bq, H]."""
    return ref[0, 0].reshape(plan.folded, plan.H)


def _along_lanes(ref: Any, plan: _Plan) -> jax.Array:
    """A block [1, 1, G, bq] of one number per query as [1, G * bq]."""
    return jnp.concatenate([ref[0, 0, g : g + 1, :] for g in range(plan.G)], axis=1)


def _row_mask(plan: _Plan, start_ref: Any, query_block: jax.Array, key_block: jax.Array):
    """Which keys of a row block [bk, G * bq] each query sees."""
    bq, bk = plan.blocks.queries, plan.blocks.keys
    shape = (bk, bq)
    key = key_block * bk + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    query = query_block * bq + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = (key <= query) & (key >= start_ref[0])
    return jnp.concatenate([seen.astype(jnp.int32)] * plan.G, axis=1) != 0


def _prefix_mask(plan: _Plan, length: jax.Array, key_block: jax.Array):
    shape = (plan.blocks.keys, plan.folded)
    key = key_block * plan.blocks.keys + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return key < length


def _is_row_block(plan: _Plan, first_ref: Any, b: Any, i: Any, r: Any):
    """Whether some query of block i of row b sees some key of its row's block r."""
    last = ((i + 1) * plan.blocks.queries - 1) // plan.blocks.keys
    return (r >= first_ref[b, i]) & (r <= last)


# ---- forward and dq: for each query block, all key blocks


def _visit_keys(plan, first, length, k, v, pk, pv, start, visit):
    """Calls visit(keys, values, mask) for this step's key block, if a query sees some of it."""
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    r = j - plan.prefix_blocks

    @pl.when((j < plan.prefix_blocks) & (j * plan.blocks.keys < length[b]))
    def _():
        visit(pk[0, 0], pv[0, 0], _prefix_mask(plan, length[b], j))

    @pl.when((r >= 0) & _is_row_block(plan, first, b, i, r))
    def _():
        visit(k[0, 0], v[0, 0], _row_mask(plan, start, i, r))


def _forward_kernel(first, length, q, k, v, pk, pv, start, out, lse, top, total, acc, *, plan):
    j = pl.program_id(3)

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full_like(top, NEG_INF)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    def visit(keys, values, mask):
        s = _dot(keys, _folded_queries(q, plan), (1, 1)) * plan.scale  # [bk, G * bq]
        s = jnp.where(mask, s, NEG_INF)
        new_top = jnp.maximum(top[...], s.max(axis=0, keepdims=True))
        # Where a query has seen nothing yet its top is NEG_INF, and exp(0) must not count.
        p = jnp.where(mask, jnp.exp(s - new_top), 0.0)
        keep = jnp.exp(top[...] - new_top)
        total[...] = total[...] * keep + p.sum(axis=0, keepdims=True)
        acc[...] = acc[...] * keep + _dot(values, p.astype(values.dtype), (0, 0))
        top[...] = new_top

    _visit_keys(plan, first, length, k, v, pk, pv, start, visit)

    @pl.when(j == plan.prefix_blocks + plan.row_blocks - 1)
    def _():
        # Every query sees at least itself, so the total is never zero.
        out[0, 0] = (acc[...] / total[...]).T.reshape(plan.G, -1, plan.H).astype(out.dtype)
        found = top[...] + jnp.log(total[...])
        for g in range(plan.G):
            bq = plan.blocks.queries
            lse[0, 0, g : g + 1, :] = found[:, g * bq : (g + 1) * bq]


def _weights(plan, q, keys, mask, lse):
    """Softmax weights of a block from the saved log-sum-exp, [bk, G * bq]."""
    s = _dot(keys, _folded_queries(q, plan), (1, 1)) * plan.scale
    return jnp.exp(jnp.where(mask, s - _along_lanes(lse, plan), NEG_INF))


def _score_gradient(plan, p, values, d_out, delta):
    """Gradient of the unscaled products q . k, [bk, G * bq]."""
    d_p = _dot(values, _folded_queries(d_out, plan), (1, 1))
    return p * (d_p - _along_lanes(delta, plan)) * plan.scale


def _dq_kernel(first, length, q, k, v, pk, pv, start, d_out, lse, delta, dq, acc, *, plan):
    j = pl.program_id(3)

    @pl.when(j == 0)
    def _():
        acc[...] = jnp.zeros_like(acc)

    def visit(keys, values, mask):
        p = _weights(plan, q, keys, mask, lse)
        d_s = _score_gradient(plan, p, values, d_out, delta)
        acc[...] += _dot(d_s.astype(keys.dtype), keys, (0, 0))

    _visit_keys(plan, first, length, k, v, pk, pv, start, visit)

    @pl.when(j == plan.prefix_blocks + plan.row_blocks - 1)
    def _():
        dq[0, 0] = acc[...].reshape(plan.G, -1, plan.H).astype(dq.dtype)


def _accumulate_kv(plan, q, keys, values, mask, d_out, lse, delta, dk_acc, dv_acc):
    p = _weights(plan, q, keys, mask, lse)
    d_s = _score_gradient(plan, p, values, d_out, delta)
    dv_acc[...] += _dot(p.astype(values.dtype), _folded_queries(d_out, plan), (1, 0))
    dk_acc[...] += _dot(d_s.astype(keys.dtype), _folded_queries(q, plan), (1, 0))


# ---- dk, dv of the row: for each of its key blocks, the query blocks that see it


def _row_kv_kernel(first, length, q, k, v, start, d_out, lse, delta, dk, dv, ka, va, *, plan):
    b, r, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def _():
        ka[...] = jnp.zeros_like(ka)
        va[...] = jnp.zeros_like(va)

    @pl.when(_is_row_block(plan, first, b, i, r))
    def _():
        mask = _row_mask(plan, start, i, r)
        _accumulate_kv(plan, q, k[0, 0], v[0, 0], mask, d_out, lse, delta, ka, va)

    @pl.when(i == plan.query_blocks - 1)
    def _():
        dk[0, 0] = ka[...].astype(dk.dtype)
        dv[0, 0] = va[...].astype(dv.dtype)


# ---- dk, dv of the prefix: for each of its blocks, all rows and query blocks


def _prefix_kv_kernel(first, length, q, pk, pv, d_out, lse, delta, dk, dv, ka, va, *, plan):
    p, b, i = pl.program_id(1), pl.program_id(2), pl.program_id(3)
    row_begins, row_ends = i == 0, i == plan.query_blocks - 1

    @pl.when(row_begins & ((b == 0) | (not plan.shared)))
    def _():
        ka[...] = jnp.zeros_like(ka)
        va[...] = jnp.zeros_like(va)

    @pl.when(p * plan.blocks.keys < length[b])
    def _():
        mask = _prefix_mask(plan, length[b], p)
        _accumulate_kv(plan, q, pk[0, 0], pv[0, 0], mask, d_out, lse, delta, ka, va)

    @pl.when(row_ends & ((b == plan.B - 1) | (not plan.shared)))
    def _():
        dk[0, 0] = ka[...]
        dv[0, 0] = va[...]


# ---- calls


def _specs_by_query(plan: _Plan) -> dict[str, pl.BlockSpec]:
    """Blocks of the grid (B, K, query block, key block); index maps also get the scalars."""
    bq, bk, G, H = plan.blocks.queries, plan.blocks.keys, plan.G, plan.H

    def row_block(b, h, i, j, first, length):
        last = ((i + 1) * bq - 1) // bk
        return b, h, jnp.clip(j - plan.prefix_blocks, first[b, i], last), 0

    def prefix_block(b, h, i, j, first, length):
        live = jnp.maximum((length[b] + bk - 1) // bk - 1, 0)
        return 0 if plan.shared else b, h, jnp.minimum(j, live), 0

    return {
        "q": pl.BlockSpec((1, 1, G, bq, H), lambda b, h, i, j, *_: (b, h, 0, i, 0)),
        "row": pl.BlockSpec((1, 1, bk, H), row_block),
        "prefix": pl.BlockSpec((1, 1, bk, H), prefix_block),
        "start": pl.BlockSpec((1, 1, bq), lambda b, h, i, j, *_: (b, 0, i)),
        "scalar": pl.BlockSpec((1, 1, G, bq), lambda b, h, i, j, *_: (b, h, 0, i)),
    }


def _call(kernel, plan, grid, in_specs, out_specs, out_shape, scratch, cost, sequential=1):
    semantics: Any = ("parallel",) * (len(grid) - sequential) + ("arbitrary",) * sequential
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics, vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=cost,
        interpret=plan.interpret,
        name=kernel.__name__.strip("_"),
    )


def _cost(plan: _Plan, products: int, arrays: tuple[jax.Array, ...]) -> pl.CostEstimate:
    """An upper bound: all causal blocks of unpacked rows are visited."""
    pairs = plan.B * plan.K * plan.G * plan.T * (plan.P + plan.T // 2)
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(
        flops=2 * products * pairs * plan.H, transcendentals=pairs, bytes_accessed=moved
    )


def pallas_forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    prefix_k: Float[Array, "*R P K H"],
    prefix_v: Float[Array, "*R P K H"],
    segment_start: Int[Array, "B T"],
    prefix_length: Int[Array, "*R"],
    *,
    scale: float,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attended values in the dtype of `q`, and the log-sum-exp of each query's scores, float32.

    See `attention.api.attention`; here queries are the rows' own tokens. `blocks` are for tests.
    """
    plan, x = _prepare(
        q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks, interpret
    )
    specs = _specs_by_query(plan)
    folded = plan.folded
    lse_shape = (plan.B, plan.K, plan.G, plan.T)
    arrays = (x.q, x.k, x.v, x.prefix_k, x.prefix_v)
    names = ("q", "row", "row", "prefix", "prefix", "start")
    visit = plan.prefix_blocks + plan.row_blocks
    out, lse = _call(
        _forward_kernel,
        plan,
        (plan.B, plan.K, plan.query_blocks, visit),
        [specs[name] for name in names],
        [specs["q"], specs["scalar"]],
        [
            jax.ShapeDtypeStruct(x.q.shape, q.dtype),
            jax.ShapeDtypeStruct(lse_shape, jnp.float32),
        ],
        [(1, folded), (1, folded), (plan.H, folded)],
        _cost(plan, 2, (*arrays, x.q)),
    )(*x.scalars, *arrays, x.segment_start)
    return _tokens_first(out, q.shape), _lse_out(lse, q.shape)


def _tokens_first(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, K, G, T, H], padded, as [B, T, N, H]."""
    return x.transpose(0, 3, 1, 2, 4)[:, : shape[1]].reshape(shape)


def _lse_out(lse: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return lse.transpose(0, 3, 1, 2)[:, : shape[1]].reshape(shape[:3])


def pallas_backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    prefix_k: Float[Array, "*R P K H"],
    prefix_v: Float[Array, "*R P K H"],
    segment_start: Int[Array, "B T"],
    prefix_length: Int[Array, "*R"],
    lse: Float[Array, "B T N"],
    delta: Float[Array, "B T N"],
    d_out: Float[Array, "B T N H"],
    *,
    scale: float,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v, prefix_k, prefix_v; those of the prefix in float32.

    Args beyond `pallas_forward`:
      lse: as it returned.
      delta: sum over H of out * d_out, minus the gradient of lse.
      d_out: gradient of the attended values.
    """
    plan, x = _prepare(
        q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks, interpret
    )
    B, K, G, T, H = plan.B, plan.K, plan.G, plan.T, plan.H
    bq, bk, folded = plan.blocks.queries, plan.blocks.keys, plan.folded

    def per_query(x: jax.Array) -> jax.Array:
        return _pad(x.reshape(B, -1, K, G).transpose(0, 2, 3, 1), 3, T)

    d_folded = d_out.reshape(B, -1, K, G, H).transpose(0, 2, 3, 1, 4)
    d_folded = _pad(d_folded.astype(q.dtype), 3, T)
    saved = (d_folded, per_query(lse), per_query(delta))
    arrays = (x.q, x.k, x.v, x.prefix_k, x.prefix_v)

    # ---- dq
    specs = _specs_by_query(plan)
    names = ("q", "row", "row", "prefix", "prefix", "start", "q", "scalar", "scalar")
    dq = _call(
        _dq_kernel,
        plan,
        (B, K, plan.query_blocks, plan.prefix_blocks + plan.row_blocks),
        [specs[name] for name in names],
        specs["q"],
        jax.ShapeDtypeStruct(x.q.shape, q.dtype),
        [(folded, H)],
        _cost(plan, 3, (*arrays, *saved, x.q)),
    )(*x.scalars, *arrays, x.segment_start, *saved)

    # ---- dk, dv of the row; query blocks before the keys are not moved
    def query_block(b, h, r, i, *_):
        return b, h, 0, jnp.maximum(i, r * bk // bq), 0

    query = pl.BlockSpec((1, 1, G, bq, H), query_block)
    number = pl.BlockSpec((1, 1, G, bq), lambda *a: query_block(*a)[:4])
    start = pl.BlockSpec((1, 1, bq), lambda *a: (a[0], 0, query_block(*a)[3]))
    own = pl.BlockSpec((1, 1, bk, H), lambda b, h, r, i, *_: (b, h, r, 0))
    dk, dv = _call(
        _row_kv_kernel,
        plan,
        (B, K, plan.row_blocks, plan.query_blocks),
        [query, own, own, start, query, number, number],
        [own, own],
        [jax.ShapeDtypeStruct(x.k.shape, k.dtype), jax.ShapeDtypeStruct(x.v.shape, v.dtype)],
        [(bk, H), (bk, H)],
        _cost(plan, 4, (x.q, x.k, x.v, *saved, x.k, x.v)),
    )(*x.scalars, x.q, x.k, x.v, x.segment_start, *saved)

    def rows_out(x: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.moveaxis(x[:, :, : like.shape[1]], 1, 2)

    gradients = (_tokens_first(dq, q.shape), rows_out(dk, k), rows_out(dv, v))
    if not prefix_k.shape[-3]:
        return *gradients, *[jnp.zeros(prefix_k.shape, jnp.float32)] * 2

    # ---- dk, dv of the prefix, summed over the rows that share it
    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, p, b, i, *_: (b, h, 0, i, 0))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, p, b, i, *_: (b, h, 0, i))
    slots = pl.BlockSpec((1, 1, bk, H), lambda h, p, b, i, *_: (0 if plan.shared else b, h, p, 0))
    shape = jax.ShapeDtypeStruct(x.prefix_k.shape, jnp.float32)
    d_prefix = _call(
        _prefix_kv_kernel,
        plan,
        (K, plan.prefix_blocks, B, plan.query_blocks),
        [query, slots, slots, query, number, number],
        [slots, slots],
        [shape, shape],
        [(bk, H), (bk, H)],
        _cost(plan, 4, (x.q, x.prefix_k, x.prefix_v, *saved)),
        sequential=2,
    )(*x.scalars, x.q, x.prefix_k, x.prefix_v, *saved)

    def slots_out(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x[:, :, : prefix_k.shape[-3]], 1, 2)
        return x[0] if plan.shared else x

    return *gradients, *map(slots_out, d_prefix)
