"""Attention on TPU: Pallas kernels for a prefix that all rows share and packed, causal rows.

Two kernels, one forward and one backward. A kv head's keys stay in VMEM, the row's while its
queries pass by and a shared prefix's for all rows, so every array is read from HBM once; inside,
loops run over the blocks of keys that some query of the block sees, and over no others. The heads
of a group are folded into the query block, and scores are kept transposed, [keys, group * queries]:
what belongs to a query then lies along lanes. The backward kernel makes all five gradients from one
recomputation of the scores; that of a shared prefix is summed in VMEM over queries, group and rows,
in float32.

Time grows with B * N * T * (P + visible row keys) * H: 2 products of that size forward, 5 backward.
Memory beside inputs, outputs and gradients: one float32 per query and head (the log-sum-exp), the
same again in the backward pass. Where the caller's arrays lie tokens first they are turned; inside
a model XLA gives the projections' outputs the kernels' layout instead. Keys that do not fit VMEM
(from some 10,000 with their gradients, heads of 128) are taken in chunks: the forward kernel reads
them anew for each block of queries, the backward one runs once a chunk, with a float32 gradient of
the queries each time. Figures of the design: WORKSPACE.md.
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
FOLDED_QUERIES = 1024  # group * queries of a block; more only where a group alone has more
KEY_BLOCK = 512
VMEM_LIMIT = 56 * 2**20  # bytes; a core has 64 MiB (tpu7x) to 128 MiB (v5e, v6e)
# Of it, for keys with their gradients. The rest holds what a step computes, about 6 float32 arrays
# of [keys, group * queries] at 2 MiB, and double-buffered blocks of queries.
VMEM_OF_KEYS = 36 * 2**20


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks that a step computes; each divides the padded length."""

    queries: int
    row_keys: int
    prefix_keys: int


def _largest_block(length: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides `length`, itself a multiple."""
    tried = range(max(limit // LANES, 1), 0, -1)
    return next(n * LANES for n in tried if length % (n * LANES) == 0)


def default_blocks(num_queries: int, num_slots: int, group: int, head_dim: int) -> Blocks:
    """Chooses block sizes for one device's padded lengths.

    Heads of 256 halve the keys, and so do groups so large that few queries are many when folded.
    """
    keys = KEY_BLOCK if head_dim <= 128 else KEY_BLOCK // 2
    keys = min(keys, KEY_BLOCK * FOLDED_QUERIES // (group * LANES))
    return Blocks(
        _largest_block(num_queries, FOLDED_QUERIES // group),
        _largest_block(num_queries, keys),
        _largest_block(num_slots, keys),
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Everything static about a call, after padding."""

    B: int
    T: int
    K: int
    G: int
    H: int
    itemsize: int
    blocks: Blocks
    scale: float
    shared: bool  # one prefix for all rows
    interpret: bool

    @property
    def query_blocks(self) -> int:
        return self.T // self.blocks.queries

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
    """Arrays as the kernels take them: heads before tokens, padded to whole lanes."""

    q: jax.Array  # [B, K, G, T, H]
    k: jax.Array  # [B, K, T, H]
    v: jax.Array
    prefix_k: jax.Array  # [1 or B, K, P, H]
    prefix_v: jax.Array
    segment_start: jax.Array  # [B, 1, T] int32
    scalars: tuple[jax.Array, jax.Array]  # first key that a query block sees [B, T / bq], P's [B]


def prepare(
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks=None, interpret=False
) -> tuple[_Plan, _Inputs]:
    """What the calls below are made of; arguments as of `pallas_forward`."""
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    padded = _round_up(T, LANES)
    slots = max(LANES, _round_up(prefix_k.shape[-3], LANES))  # no empty arrays
    blocks = blocks or default_blocks(padded, slots, G, H)
    shared = prefix_k.ndim == 3
    plan = _Plan(B, padded, K, G, H, q.dtype.itemsize, blocks, scale, shared, interpret)
    # A padding query sees itself alone: its row of weights is finite and its gradient zero.
    own = jnp.broadcast_to(jnp.arange(padded, dtype=jnp.int32), (B, padded))
    start = jnp.where(own < T, _pad(segment_start, 1, padded), own)
    first = start.reshape(B, plan.query_blocks, blocks.queries).min(-1)
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


def _row_mask(plan: _Plan, start_ref: Any, query_block: Any, first_key: Any) -> jax.Array:
    """Which of a block of the row's keys [bk, G * bq] each query sees."""
    bq = plan.blocks.queries
    shape = (plan.blocks.row_keys, bq)
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    query = query_block * bq + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = (key <= query) & (key >= start_ref[0])
    return jnp.concatenate([seen.astype(jnp.int32)] * plan.G, axis=1) != 0


def _visit_prefix(plan: _Plan, chunk: Any, length: Any, pk: Any, visit: Any) -> None:
    """Calls visit(slots, mask) for the live blocks of a chunk of the prefix that begins at `chunk`.

    Only the last block of a ragged prefix needs a mask.
    """
    bp = plan.blocks.prefix_keys
    live = jnp.clip(length - chunk, 0, pk.shape[2])

    @pl.loop(0, live // bp)
    def _(j):
        visit(pl.ds(pl.multiple_of(j * bp, bp), bp), None)

    @pl.when(live % bp != 0)
    def _():
        key = jax.lax.broadcasted_iota(jnp.int32, (bp, plan.folded), 0)
        visit(pl.ds(pl.multiple_of(live // bp * bp, bp), bp), key < live % bp)


def _visit_row(plan: _Plan, chunk: Any, first: Any, query_block: Any, k: Any, start, visit) -> None:
    """Calls visit(keys, mask) for blocks of a chunk of the row that the query block sees."""
    bk = plan.blocks.row_keys
    end = (query_block + 1) * plan.blocks.queries
    from_block = jnp.maximum(first - chunk, 0) // bk
    to_block = (jnp.clip(end - chunk, 0, k.shape[2]) + bk - 1) // bk

    @pl.loop(from_block, to_block)
    def _(j):
        at = pl.multiple_of(j * bk, bk)
        visit(pl.ds(at, bk), _row_mask(plan, start, query_block, chunk + at))


def _scores(plan: _Plan, q: jax.Array, keys: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Float32 scores [bk, G * bq]."""
    s = _dot(keys, q, (1, 1)) * plan.scale
    return s if mask is None else jnp.where(mask, s, NEG_INF)


# ---- forward: for each query block all keys; grid (K, B, query block, chunk of keys)


def _forward_kernel(
    first, length, q, k, v, pk, pv, start, out, lse, top, total, acc, *, plan, prefix_chunks
):
    b, i, c = pl.program_id(1), pl.program_id(2), pl.program_id(3)

    @pl.when(c == 0)
    def _():
        top[...] = jnp.full_like(top, NEG_INF)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    def visit(keys, values, at, mask):
        s = _scores(plan, _folded_queries(q, plan), keys[0, 0, at], mask)
        new_top = jnp.maximum(top[...], s.max(axis=0, keepdims=True))
        p = jnp.exp(s - new_top)
        if mask is not None:  # where a query has seen nothing yet, exp(0) must not count
            p = jnp.where(mask, p, 0.0)
        keep = jnp.exp(top[...] - new_top)
        total[...] = total[...] * keep + p.sum(axis=0, keepdims=True)
        seen = values[0, 0, at]
        acc[...] = acc[...] * keep + _dot(seen, p.astype(seen.dtype), (0, 0))
        top[...] = new_top

    @pl.when(c < prefix_chunks)
    def _():
        chunk = c * pk.shape[2]
        _visit_prefix(plan, chunk, length[b], pk, functools.partial(visit, pk, pv))

    @pl.when(c >= prefix_chunks)
    def _():
        chunk = (c - prefix_chunks) * k.shape[2]
        _visit_row(plan, chunk, first[b, i], i, k, start, functools.partial(visit, k, v))

    @pl.when(c == pl.num_programs(3) - 1)
    def _():
        # Every query sees at least itself, so the total is never zero.
        out[0, 0] = (acc[...] / total[...]).T.reshape(plan.G, -1, plan.H).astype(out.dtype)
        found = top[...] + jnp.log(total[...])
        for g in range(plan.G):
            bq = plan.blocks.queries
            lse[0, 0, g : g + 1, :] = found[:, g * bq : (g + 1) * bq]


# ---- backward: for each query block all keys; grid (K, B, query block)


def _backward_kernel(
    first, length, q, k, v, pk, pv, start, d_out, lse, delta,
    dq, dk, dv, dpk, dpv, dq_acc, dk_acc, dv_acc, *, plan, prefix_chunk, row_chunk,
):  # fmt: skip
    b, i = pl.program_id(1), pl.program_id(2)

    @pl.when((i == 0) & ((b == 0) | (not plan.shared)))
    def _():
        dpk[...] = jnp.zeros_like(dpk)
        dpv[...] = jnp.zeros_like(dpv)

    @pl.when(i == 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    dq_acc[...] = jnp.zeros_like(dq_acc)

    def visit(keys_ref, values_ref, add_dk, add_dv, at, mask):
        keys, values = keys_ref[0, 0, at], values_ref[0, 0, at]
        queries, d_queries = _folded_queries(q, plan), _folded_queries(d_out, plan)
        p = jnp.exp(_scores(plan, queries, keys, mask) - _along_lanes(lse, plan))
        add_dv(at, _dot(p.astype(values.dtype), d_queries, (1, 0)))
        d_p = _dot(values, d_queries, (1, 1))
        d_s = (p * (d_p - _along_lanes(delta, plan)) * plan.scale).astype(keys.dtype)
        add_dk(at, _dot(d_s, queries, (1, 0)))
        dq_acc[...] += _dot(d_s, keys, (0, 0))

    def add_to(ref, *leading):
        def add(at, x):
            ref[*leading, at] += x

        return add

    if prefix_chunk is not None:
        prefix = functools.partial(visit, pk, pv, add_to(dpk, 0, 0), add_to(dpv, 0, 0))
        _visit_prefix(plan, prefix_chunk, length[b], pk, prefix)
    if row_chunk is not None:
        row = functools.partial(visit, k, v, add_to(dk_acc), add_to(dv_acc))
        _visit_row(plan, row_chunk, first[b, i], i, k, start, row)

    dq[0, 0] = dq_acc[...].reshape(plan.G, -1, plan.H).astype(dq.dtype)

    @pl.when(i == plan.query_blocks - 1)
    def _():
        dk[0, 0] = dk_acc[...].astype(dk.dtype)
        dv[0, 0] = dv_acc[...].astype(dv.dtype)


# ---- calls


@dataclasses.dataclass(frozen=True)
class Call:
    """A kernel with its grid, blocks and arrays: to be run, or to be counted."""

    kernel: Any
    grid: tuple[int, ...]
    scalars: tuple[jax.Array, ...]
    inputs: tuple[tuple[jax.Array, pl.BlockSpec], ...]
    outputs: tuple[tuple[jax.ShapeDtypeStruct, pl.BlockSpec], ...]
    scratch: tuple[tuple[int, ...], ...]  # float32
    products: int  # matrix products of a block
    plan: _Plan

    def run(self) -> Any:
        plan = self.plan
        # Kv heads may run beside each other; a shared prefix's gradient is a sum over the rest.
        semantics: Any = ("parallel",) + ("arbitrary",) * (len(self.grid) - 1)
        slots = self.inputs[3][0].shape[2]
        pairs = plan.B * plan.K * plan.G * plan.T * (slots + plan.T // 2)
        everything = [x for x, _ in (*self.inputs, *self.outputs)]
        return pl.pallas_call(
            self.kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self.scalars),
                grid=self.grid,
                in_specs=[spec for _, spec in self.inputs],
                out_specs=[spec for _, spec in self.outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in self.scratch],
            ),
            out_shape=[shape for shape, _ in self.outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=semantics, vmem_limit_bytes=VMEM_LIMIT
            ),
            # All causal pairs of unpacked rows, and of all keys where they come in chunks.
            cost_estimate=pl.CostEstimate(
                flops=2 * self.products * pairs * plan.H,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in everything),
            ),
            interpret=plan.interpret,
            name=self.kernel.func.__name__.strip("_"),
        )(*self.scalars, *(x for x, _ in self.inputs))


def _chunk(length: int, block: int, bytes_per_key: int, budget: int) -> int:
    """The most keys, in whole blocks that divide `length`, that fit the budget; one at least."""
    blocks = length // block
    fitting = [n for n in range(1, blocks + 1) if blocks % n == 0]
    return block * max([n for n in fitting if n * block * bytes_per_key <= budget], default=1)


def forward_call(plan: _Plan, x: _Inputs) -> Call:
    """The forward kernel: values [B, K, G, T, H] and log-sum-exp [B, K, G, T]."""
    bq, G, H = plan.blocks.queries, plan.G, plan.H
    per_key = 2 * 2 * H * plan.itemsize  # keys and values, double-buffered
    slots = _chunk(x.prefix_k.shape[2], plan.blocks.prefix_keys, per_key, VMEM_OF_KEYS // 2)
    keys = _chunk(plan.T, plan.blocks.row_keys, per_key, VMEM_OF_KEYS // 2)
    prefix_chunks, row_chunks = x.prefix_k.shape[2] // slots, plan.T // keys

    def row_chunk(h, b, i, c, first, length):
        last = ((i + 1) * bq - 1) // keys
        return b, h, jnp.clip(c - prefix_chunks, first[b, i] // keys, last), 0

    def prefix_chunk(h, b, i, c, first, length):
        live = jnp.maximum((length[b] + slots - 1) // slots - 1, 0)
        return 0 if plan.shared else b, h, jnp.minimum(c, live), 0

    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, b, i, c, *_: (b, h, 0, i, 0))
    row = pl.BlockSpec((1, 1, keys, H), row_chunk)
    prefix = pl.BlockSpec((1, 1, slots, H), prefix_chunk)
    start = pl.BlockSpec((1, 1, bq), lambda h, b, i, c, *_: (b, 0, i))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, b, i, c, *_: (b, h, 0, i))
    return Call(
        functools.partial(_forward_kernel, plan=plan, prefix_chunks=prefix_chunks),
        (plan.K, plan.B, plan.query_blocks, prefix_chunks + row_chunks),
        x.scalars,
        (
            (x.q, query),
            (x.k, row),
            (x.v, row),
            (x.prefix_k, prefix),
            (x.prefix_v, prefix),
            (x.segment_start, start),
        ),
        (
            (jax.ShapeDtypeStruct(x.q.shape, x.q.dtype), query),
            (jax.ShapeDtypeStruct(x.q.shape[:-1], jnp.float32), number),
        ),
        ((1, plan.folded), (1, plan.folded), (H, plan.folded)),
        2,
        plan,
    )


def backward_calls(
    plan: _Plan, x: _Inputs, d_out: Any, lse: Any, delta: Any
) -> list[tuple[tuple[str, ...], Call]]:
    """The backward kernel, for as many chunks of keys as VMEM asks for: one for usual sizes.

    Each call gives dq [B, K, G, T, H], whose sum is wanted, and the gradients of its chunks of the
    row's keys and values and of the prefix's; which of these it has is said beside it.
    """
    bq, G, H, P = plan.blocks.queries, plan.G, plan.H, x.prefix_k.shape[2]
    # Double-buffered keys and values, and their gradients: of the row in float32 and as handed
    # out, of the prefix in float32, double-buffered.
    per_slot = 2 * H * (2 * plan.itemsize + 2 * 4)
    per_key = 2 * H * (2 * plan.itemsize + 4 + 2 * plan.itemsize)
    together = P * per_slot + plan.T * per_key <= VMEM_OF_KEYS
    budget = VMEM_OF_KEYS // 2
    slots = P if together else _chunk(P, plan.blocks.prefix_keys, per_slot, budget)
    keys = plan.T if together else _chunk(plan.T, plan.blocks.row_keys, per_key, budget)
    dq_dtype = x.q.dtype if together else jnp.float32
    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, b, i, *_: (b, h, 0, i, 0))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, b, i, *_: (b, h, 0, i))
    start = pl.BlockSpec((1, 1, bq), lambda h, b, i, *_: (b, 0, i))

    def call(prefix_chunk: int | None, row_chunk: int | None) -> Call:
        def shape(x: jax.Array, size: int, dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*x.shape[:2], size, H), dtype)

        def of_row(h, b, i, *_):
            return b, h, row_chunk or 0, 0

        def of_prefix(h, b, i, *_):
            return 0 if plan.shared else b, h, prefix_chunk or 0, 0

        def out(index):  # a chunk's gradients are an array of their own
            return lambda *a: (*index(*a)[:2], 0, 0)

        row, row_out = (pl.BlockSpec((1, 1, keys, H), f) for f in (of_row, out(of_row)))
        prefix, prefix_out = (
            pl.BlockSpec((1, 1, slots, H), f) for f in (of_prefix, out(of_prefix))
        )
        d_slots = shape(x.prefix_k, slots, jnp.float32)
        d_keys = shape(x.k, keys, x.k.dtype)
        kernel = functools.partial(
            _backward_kernel,
            plan=plan,
            prefix_chunk=None if prefix_chunk is None else prefix_chunk * slots,
            row_chunk=None if row_chunk is None else row_chunk * keys,
        )
        return Call(
            kernel,
            (plan.K, plan.B, plan.query_blocks),
            x.scalars,
            (
                (x.q, query),
                (x.k, row),
                (x.v, row),
                (x.prefix_k, prefix),
                (x.prefix_v, prefix),
                (x.segment_start, start),
                (d_out, query),
                (lse, number),
                (delta, number),
            ),
            (
                (jax.ShapeDtypeStruct(x.q.shape, dq_dtype), query),
                (d_keys, row_out),
                (d_keys, row_out),
                (d_slots, prefix_out),
                (d_slots, prefix_out),
            ),
            ((plan.folded, H), (keys, H), (keys, H)),
            5,
            plan,
        )

    prefix_chunks, row_chunks = range(P // slots), range(plan.T // keys)
    if together:
        return [(("prefix", "row"), call(0, 0))]
    of_prefix = [(("prefix",), call(c, None)) for c in prefix_chunks]
    return of_prefix + [(("row",), call(None, r)) for r in row_chunks]


# ---- what `attention.api` calls


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
    plan, x = prepare(
        q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks, interpret
    )
    out, lse = forward_call(plan, x).run()
    B, T, N, _ = q.shape
    return _tokens_first(out, q.shape), lse.transpose(0, 3, 1, 2)[:, :T].reshape(B, T, N)


def _tokens_first(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, K, G, T, H], padded, as [B, T, N, H]."""
    return x.transpose(0, 3, 1, 2, 4)[:, : shape[1]].reshape(shape)


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
    plan, x = prepare(
        q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks, interpret
    )
    B, K, G, T, H = plan.B, plan.K, plan.G, plan.T, plan.H

    def per_query(x: jax.Array) -> jax.Array:
        return _pad(x.reshape(B, -1, K, G).transpose(0, 2, 3, 1), 3, T)

    d_folded = d_out.reshape(B, -1, K, G, H).transpose(0, 2, 3, 1, 4)
    d_folded = _pad(d_folded.astype(q.dtype), 3, T)
    found = [
        (parts, call.run())
        for parts, call in backward_calls(plan, x, d_folded, per_query(lse), per_query(delta))
    ]

    def joined(part: str, output: int) -> jax.Array:
        return jnp.concatenate([d[output] for parts, d in found if part in parts], axis=2)

    dq = functools.reduce(jnp.add, (d[0] for _, d in found))
    dk, dv, dpk, dpv = joined("row", 1), joined("row", 2), joined("prefix", 3), joined("prefix", 4)

    def tokens_first(x: jax.Array, length: int) -> jax.Array:
        return jnp.moveaxis(x[:, :, :length], 1, 2)

    slots = prefix_k.shape[-3]
    d_prefix = [tokens_first(x, slots) for x in (dpk, dpv)]
    return (
        _tokens_first(dq, q.shape),
        tokens_first(dk, k.shape[1]),
        tokens_first(dv, v.shape[1]),
        *(x[0] if plan.shared else x for x in d_prefix),
    )
