"""Attention of many short rows behind one prefix: what scoring runs off TPU.

The queries of all rows are one matrix to the prefix, so it is read once for all of them, and its
products are large ones however short the rows are; a row's own keys are seen row by row. The two
parts are merged by their log-sum-exp. Queries come in blocks whose scores stay in cache.

Time grows with B * N * T * (P + T), temporaries with BLOCK * K * P for the prefix and MOST_SCORES
for the rows' own keys.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.mask import NEG_INF, Attended, Rows, head_product, visible_keys

BLOCK = 512  # most queries of a kv head at a time; the scores of more leave a CPU's cache
MOST_SCORES = 2**22  # of the rows' own keys, at a time


class _Part(NamedTuple):
    """A softmax over some of the keys, not yet divided: [B, K, Q, ...], Q queries of a group."""

    values: jax.Array  # [B, K, Q, H]
    top: jax.Array  # [B, K, Q], the highest score
    total: jax.Array  # [B, K, Q], the sum of exponentials below it


def folded_attention(rows: Rows, *, scale: float) -> Attended:
    """Attended values and log-sum-exp."""
    rows = rows.in_one_dtype()
    q, k, v, prefix_k, prefix_v, *_ = rows
    B, T, N, H = q.shape
    K, G = k.shape[2], N // k.shape[2]
    folded = q.reshape(B, T, K, G, H).transpose(0, 2, 1, 3, 4).reshape(B, K, T * G, H)
    keys, values = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
    part = _own_part(folded, keys, values, rows.segment_start, scale)
    if prefix_k.shape[0]:
        slots = prefix_k.transpose(1, 2, 0), prefix_v.swapaxes(0, 1)
        part = _merged(part, _prefix_part(folded, *slots, rows.prefix_length, scale))

    def tokens_first(x: jax.Array) -> jax.Array:
        split = x.reshape(B, K, T, G, *x.shape[3:])
        return jnp.moveaxis(split, 2, 1).reshape(B, T, N, *x.shape[3:])

    out = tokens_first(part.values / part.total[..., None])
    return out.astype(q.dtype), tokens_first(part.top + jnp.log(part.total))


def _merged(a: _Part, b: _Part) -> _Part:
    top = jnp.maximum(a.top, b.top)
    of_a, of_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    values = a.values * of_a[..., None] + b.values * of_b[..., None]
    return _Part(values, top, a.total * of_a + b.total * of_b)


def _prefix_part(
    q: Float[Array, "B K Q H"],
    prefix_k: Float[Array, "K H P"],
    prefix_v: Float[Array, "K P H"],
    length: Int[Array, ""],
    scale: float,
) -> _Part:
    """All rows' queries of a kv head against its slots, a block of queries at a time."""
    B, K, Q, H = q.shape
    queries = q.transpose(1, 0, 2, 3).reshape(K, B * Q, H)
    live = jnp.arange(prefix_k.shape[2]) < length

    def one_block(block: Float[Array, "K M H"]) -> tuple[jax.Array, ...]:
        s = head_product(block, prefix_k, (2, 1)) * scale  # [K, M, P]
        s = jnp.where(live, s, NEG_INF)
        top = s.max(-1)
        p = jnp.exp(s - top[..., None])
        return head_product(p.astype(prefix_v.dtype), prefix_v, (2, 1)), top, p.sum(-1)

    def rows_first(x: jax.Array) -> jax.Array:
        return x.reshape(K, B, Q, *x.shape[2:]).swapaxes(0, 1)

    return _Part(*map(rows_first, _in_blocks(one_block, queries)))


def _in_blocks(
    run: Callable[[jax.Array], tuple[jax.Array, ...]], queries: Float[Array, "K M H"]
) -> tuple[jax.Array, ...]:
    """What `run` gives for all queries, at most BLOCK of a head at a time; the last is padded."""
    K, M, H = queries.shape
    if M <= BLOCK:
        return run(queries)
    count = -(-M // BLOCK)
    size = -(-M // count)
    padded = jnp.pad(queries, ((0, 0), (0, count * size - M), (0, 0)))
    found = jax.lax.map(run, padded.reshape(K, count, size, H).swapaxes(0, 1))
    return tuple(x.swapaxes(0, 1).reshape(K, count * size, *x.shape[3:])[:, :M] for x in found)


def _own_part(
    q: Float[Array, "B K Q H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    segment_start: Int[Array, "B T"],
    scale: float,
) -> _Part:
    """Each row's queries against its own keys, as many rows at a time as MOST_SCORES allow."""
    B, K, Q, _ = q.shape
    S = k.shape[3]
    rows = max(1, min(B, MOST_SCORES // (K * Q * S)))

    def some_rows(args: tuple[jax.Array, ...]) -> _Part:
        q, k, v, start = args
        s = jnp.einsum("BKQH,BKHS->BKQS", q, k, preferred_element_type=jnp.float32) * scale
        seen = visible_keys(start)  # [B, T, T]
        seen = jnp.repeat(seen, Q // seen.shape[1], axis=1)  # a group's heads see alike
        s = jnp.where(seen[:, None], s, NEG_INF)
        top = s.max(-1)
        p = jnp.exp(s - top[..., None])
        values = jnp.einsum(
            "BKQS,BKSH->BKQH", p.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return _Part(values, top, p.sum(-1))

    if rows == B:
        return some_rows((q, k, v, segment_start))

    def one_row(args: tuple[jax.Array, ...]) -> _Part:
        return jax.tree.map(lambda x: x[0], some_rows(tuple(x[None] for x in args)))

    return jax.lax.map(one_row, (q, k, v, segment_start), batch_size=rows)
