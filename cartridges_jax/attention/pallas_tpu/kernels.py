"""The two kernels: what happens in VMEM for one block of queries.

Both loop over the blocks of keys that some query of the block sees, a shared prefix's first, and
over no others. `calls.py` says which blocks lie in VMEM when.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from cartridges_jax.attention.pallas_tpu.plan import Plan
from cartridges_jax.attention.reference import NEG_INF


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each with float32 sums."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _folded_queries(ref: Any, plan: Plan) -> jax.Array:
    """A block [1, 1, G, bq, H] as [G * bq, H]."""
    return ref[0, 0].reshape(plan.folded, plan.H)


def _along_lanes(ref: Any, plan: Plan) -> jax.Array:
    """A block [1, 1, G, bq] of one number per query as [1, G * bq]."""
    return jnp.concatenate([ref[0, 0, g : g + 1, :] for g in range(plan.G)], axis=1)


def _row_mask(plan: Plan, start_ref: Any, query_block: Any, first_key: Any) -> jax.Array:
    """Which of a block of the row's keys [bk, G * bq] each query sees."""
    bq = plan.blocks.queries
    shape = (plan.blocks.row_keys, bq)
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    query = query_block * bq + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = (key <= query) & (key >= start_ref[0])
    return jnp.concatenate([seen.astype(jnp.int32)] * plan.G, axis=1) != 0


def _visit_prefix(plan: Plan, chunk: Any, length: Any, pk: Any, visit: Any) -> None:
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


def _visit_row(plan: Plan, chunk: Any, first: Any, query_block: Any, k: Any, start, visit) -> None:
    """Calls visit(keys, mask) for blocks of a chunk of the row that the query block sees."""
    bk = plan.blocks.row_keys
    end = (query_block + 1) * plan.blocks.queries
    from_block = jnp.maximum(first - chunk, 0) // bk
    to_block = (jnp.clip(end - chunk, 0, k.shape[2]) + bk - 1) // bk

    @pl.loop(from_block, to_block)
    def _(j):
        at = pl.multiple_of(j * bk, bk)
        visit(pl.ds(at, bk), _row_mask(plan, start, query_block, chunk + at))


def _scores(plan: Plan, q: jax.Array, keys: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Float32 scores [bk, G * bq]."""
    s = _dot(keys, q, (1, 1)) * plan.scale
    return s if mask is None else jnp.where(mask, s, NEG_INF)


# ---- forward: for each query block all keys; grid (K, B, query block, chunk of keys)


def forward_kernel(first, length, q, k, v, pk, pv, start, out, lse, top, total, acc, *, plan):
    """One block of queries of one kv head sees one chunk of keys; the last chunk writes.

    In SMEM: first [B, query blocks], the first key that a block of queries sees; length [B], live
    slots. In VMEM, with the G query heads of the kv head folded into bq queries: q, out
    [1, 1, G, bq, H]; k, v [1, 1, keys, H] and the prefix's pk, pv [1, 1, slots, H] of the chunk;
    start [1, 1, bq], the first key of each query; lse [1, 1, G, bq] float32. Kept from chunk to
    chunk in float32: the highest score and the sum of exponentials so far, top and total
    [1, G * bq], and the sum of values, acc [H, G * bq].
    """
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

    prefix, row = functools.partial(visit, pk, pv), functools.partial(visit, k, v)
    _visit_prefix(plan, c * pk.shape[2], length[b], pk, prefix)
    _visit_row(plan, c * k.shape[2], first[b, i], i, k, start, row)

    @pl.when(c == plan.chunks - 1)
    def _():
        # Every query sees at least itself, so the total is never zero.
        out[0, 0] = (acc[...] / total[...]).T.reshape(plan.G, -1, plan.H).astype(out.dtype)
        found = top[...] + jnp.log(total[...])
        for g in range(plan.G):
            bq = plan.blocks.queries
            lse[0, 0, g : g + 1, :] = found[:, g * bq : (g + 1) * bq]


# ---- backward: for each query block all keys; grid (K, B, query block)


def backward_kernel(
    first, length, q, k, v, pk, pv, start, d_out, lse, delta,
    dq, dk, dv, dpk, dpv, dq_acc, dk_acc, dv_acc, *, plan, chunk,
):  # fmt: skip
    """Gradients by one block of queries of one kv head, for the keys of chunk number `chunk`.

    Arguments as in `forward_kernel`; d_out, dq [1, 1, G, bq, H]; lse, delta [1, 1, G, bq] float32;
    dk, dv [1, 1, keys, H], written when all query blocks have been; dpk, dpv [1, 1, slots, H]
    float32, which stay in VMEM over all rows of a group, and are the sums themselves.
    Float32 sums: dq_acc [G * bq, H], dk_acc and dv_acc [keys, H].
    """
    b, i = pl.program_id(1), pl.program_id(2)

    @pl.when((i == 0) & (b % plan.group_rows == 0))
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

    prefix = functools.partial(visit, pk, pv, add_to(dpk, 0, 0), add_to(dpv, 0, 0))
    row = functools.partial(visit, k, v, add_to(dk_acc), add_to(dv_acc))
    _visit_prefix(plan, chunk * pk.shape[2], length[b], pk, prefix)
    _visit_row(plan, chunk * k.shape[2], first[b, i], i, k, start, row)

    dq[0, 0] = dq_acc[...].reshape(plan.G, -1, plan.H).astype(dq.dtype)

    @pl.when(i == plan.query_blocks - 1)
    def _():
        dk[0, 0] = dk_acc[...].astype(dk.dtype)
        dv[0, 0] = dv_acc[...].astype(dv.dtype)
