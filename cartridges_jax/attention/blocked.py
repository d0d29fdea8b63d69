"""Attention row by row in query blocks with its own backward pass: the path for long rows.

One row at a time keeps the scores of a block in cache (CPU) or VMEM, so memory does not grow with
B * T * S. A block of queries looks at a window of keys that ends with it and reaches back to the
first segment it holds; windows have a few sizes (1, 2, 4, ... blocks), so that packed rows cost
what their conversations do and few programs are compiled. The backward recomputes scores from the
saved log-sum-exp. Plain XLA, so it compiles everywhere. Figures that chose this form are in
WORKSPACE.md.

Time grows with B * N * T * (P + window), temporaries with N * BLOCK * (P + T); saved for the
backward are the inputs, the output and one float32 per query and head.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.reference import NEG_INF

BLOCK = 96  # most queries of a block; 64 and 128 are 5 and 20 % slower on packed rows of 2,048
_F32 = {"preferred_element_type": jnp.float32}


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How a row of T tokens is cut; the last block is padded."""

    T: int

    @property
    def count(self) -> int:
        return -(-self.T // BLOCK)

    @property
    def size(self) -> int:
        return -(-self.T // self.count)

    @property
    def windows(self) -> list[int]:
        """Numbers of blocks that a window may have."""
        return [*(2**n for n in range((self.count - 1).bit_length())), self.count]

    def which_window(self, block: jax.Array | int, segment_start: Int[Array, "t"]) -> jax.Array:
        """Index of the smallest window of block `block` that reaches its first segment."""
        needed = block - jnp.min(segment_start) // self.size + 1
        return jnp.sum(jnp.asarray(self.windows) < needed)

    def pad(self, x: jax.Array) -> jax.Array:
        """A row [T, ...] with whole blocks."""
        extra = self.count * self.size - self.T
        return jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)) if extra else x

    def cut(self, x: jax.Array) -> jax.Array:
        """A padded row as [blocks, size, ...]."""
        return x.reshape(self.count, self.size, *x.shape[1:])


def _grouped(x: jax.Array, K: int) -> jax.Array:
    """[B, T, N, ...] as [B, T, K, G, ...]."""
    return x.reshape(*x.shape[:2], K, x.shape[2] // K, *x.shape[3:])


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row's keys behind its prefix; everything is of one device."""

    blocks: _Blocks
    k: jax.Array  # [padded T, K, H]
    v: jax.Array
    prefix_k: jax.Array  # [P, K, H]
    prefix_v: jax.Array
    length: jax.Array  # live slots
    scale: float

    def window(self, block: jax.Array, num_blocks: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """First key of a block's window; keys and values behind the prefix, [P + w, K, H]."""
        size = self.blocks.size
        first = jnp.maximum(block + 1 - num_blocks, 0) * size

        def behind(prefix: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.concatenate(
                [prefix, jax.lax.dynamic_slice_in_dim(x, first, num_blocks * size)]
            )

        return first, behind(self.prefix_k, self.k), behind(self.prefix_v, self.v)

    def scores(self, q, keys, first, segment_start, block) -> jax.Array:
        """Masked float32 scores [K, G, t, P + w]."""
        s = jnp.einsum("TKGH,SKH->KGTS", q, keys, **_F32) * self.scale
        P = self.prefix_k.shape[0]
        key = first + jnp.arange(keys.shape[0] - P)
        query = block * self.blocks.size + jnp.arange(q.shape[0])
        own = (key <= query[:, None]) & (key >= segment_start[:, None])
        live = jnp.broadcast_to(jnp.arange(P) < self.length, (q.shape[0], P))
        return jnp.where(jnp.concatenate([live, own], axis=1), s, NEG_INF)


def _own_start(blocks: _Blocks, segment_start: Int[Array, "T"]) -> jax.Array:
    """Segment starts of a padded row [blocks, size]; a padding query sees padding alone."""
    padded = blocks.pad(segment_start)
    index = jnp.arange(padded.shape[0])
    return blocks.cut(jnp.where(index < blocks.T, padded, index))


def _in_the_loop(q: jax.Array, segment_start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ties the masks to the queries.

    They are the same in every layer: the scan over layers would else compute them ahead for all
    rows and blocks when it is differentiated, and keep arrays of the size of all scores.
    """
    return jax.lax.optimization_barrier((q, segment_start))


def _rows_and_prefix(prefix_k, prefix_v, prefix_length, B):
    """Whether rows share a prefix, and the live slots of each row's, [B]."""
    return prefix_k.ndim == 3, jnp.broadcast_to(prefix_length, (B,))


def blocked_forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    prefix_k: Float[Array, "*R P K H"],
    prefix_v: Float[Array, "*R P K H"],
    segment_start: Int[Array, "B T"],
    prefix_length: Int[Array, "*R"],
    *,
    scale: float,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attended values and log-sum-exp, for rows whose keys are their own T tokens.

    See `attention.api.attention`.
    """
    B, T, N, H = q.shape
    blocks = _Blocks(T)
    q, segment_start = _in_the_loop(q, segment_start)
    shared, lengths = _rows_and_prefix(prefix_k, prefix_v, prefix_length, B)

    def attend(row: _Row, num_blocks: int, q, start, block):
        first, keys, values = row.window(block, num_blocks)
        s = row.scores(q, keys, first, start, block)
        top = s.max(-1, keepdims=True)
        p = jnp.exp(s - top)
        total = p.sum(-1, keepdims=True)
        out = jnp.einsum("KGTS,SKH->TKGH", p.astype(v.dtype), values, **_F32)
        lse = jnp.moveaxis((top + jnp.log(total))[..., 0], -1, 0)
        return (out / jnp.moveaxis(total, 2, 0)).astype(q.dtype), lse

    def one_row(args):
        q, k, v, start, length, *own_prefix = args
        slots_k, slots_v = (prefix_k, prefix_v) if shared else own_prefix
        row = _Row(blocks, blocks.pad(k), blocks.pad(v), slots_k, slots_v, length, scale)

        def one_block(args):
            q, start, block = args
            sizes = [functools.partial(attend, row, n) for n in blocks.windows]
            return jax.lax.switch(blocks.which_window(block, start), sizes, q, start, block)

        cut = (blocks.cut(blocks.pad(q)), _own_start(blocks, start), jnp.arange(blocks.count))
        out, lse = jax.lax.map(one_block, cut)
        return out.reshape(-1, N, H)[:T], lse.reshape(-1, N)[:T]

    own_prefixes = () if shared else (prefix_k, prefix_v)
    grouped = _grouped(q, k.shape[2])
    return jax.lax.map(one_row, (grouped, k, v, segment_start, lengths, *own_prefixes))


def blocked_backward(
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
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v, prefix_k, prefix_v; those of the prefix in float32.

    Args beyond `blocked_forward`:
      lse: as it returned.
      delta: sum over H of out * d_out, minus the gradient of lse.
      d_out: gradient of the attended values.
    """
    B, T = q.shape[:2]
    P, K = prefix_k.shape[-3], k.shape[2]
    blocks = _Blocks(T)
    q, segment_start = _in_the_loop(q, segment_start)
    shared, lengths = _rows_and_prefix(prefix_k, prefix_v, prefix_length, B)

    def pull(row: _Row, num_blocks: int, sums: Any, q, start, lse, delta, d_out, block):
        """Adds a block's gradients of keys and values to the sums; returns that of its queries."""
        first, keys, values = row.window(block, num_blocks)
        lse, delta = (jnp.moveaxis(x, 0, -1)[..., None] for x in (lse, delta))  # [K, G, t, 1]
        p = jnp.exp(row.scores(q, keys, first, start, block) - lse)
        d_p = jnp.einsum("TKGH,SKH->KGTS", d_out, values, **_F32)
        d_s = (p * (d_p - delta) * scale).astype(q.dtype)
        d_values = jnp.einsum("KGTS,TKGH->SKH", p.astype(v.dtype), d_out, **_F32)
        d_keys = jnp.einsum("KGTS,TKGH->SKH", d_s, q, **_F32)
        d_q = jnp.einsum("KGTS,SKH->TKGH", d_s, keys, **_F32).astype(q.dtype)
        (own_k, slots_k), (own_v, slots_v) = (
            (_add_at(own, d[P:], first), slots + d[:P])
            for (own, slots), d in zip(sums, (d_keys, d_values), strict=True)
        )
        return ((own_k, slots_k), (own_v, slots_v)), d_q

    def one_row(d_shared, args):
        q, k, v, start, lse, delta, d_out, length, *own_prefix = args
        slots_k, slots_v = (prefix_k, prefix_v) if shared else own_prefix
        row = _Row(blocks, blocks.pad(k), blocks.pad(v), slots_k, slots_v, length, scale)

        def one_block(sums, args):
            _, start, *_, block = args
            sizes = [functools.partial(pull, row, n) for n in blocks.windows]
            return jax.lax.switch(blocks.which_window(block, start), sizes, sums, *args)

        zero = jnp.zeros(row.k.shape, jnp.float32)
        nothing = jnp.zeros((P, *k.shape[1:]), jnp.float32)
        before = d_shared if shared else (nothing, nothing)
        per_query = (blocks.cut(blocks.pad(x)) for x in (lse, delta, d_out))
        cut = (blocks.cut(blocks.pad(q)), _own_start(blocks, start), *per_query)
        sums = tuple((zero, slots) for slots in before)
        sums, d_q = jax.lax.scan(one_block, sums, (*cut, jnp.arange(blocks.count)))
        (d_k, slots_k), (d_v, slots_v) = sums
        d_row = (
            d_q.reshape(-1, *q.shape[1:])[:T],
            d_k[:T].astype(k.dtype),
            d_v[:T].astype(v.dtype),
        )
        if not shared:
            return d_shared, (*d_row, slots_k, slots_v)
        return (slots_k, slots_v), d_row

    grouped = [_grouped(x, K) for x in (q, lse, delta, d_out)]
    own_prefixes = () if shared else (prefix_k, prefix_v)
    rows = (grouped[0], k, v, segment_start, *grouped[1:], lengths, *own_prefixes)
    zero = jnp.zeros(prefix_k.shape if shared else (), jnp.float32)
    d_shared, d_rows = jax.lax.scan(one_row, (zero, zero), rows)
    d_q, d_k, d_v = d_rows[:3]
    return d_q.reshape(q.shape), d_k, d_v, *(d_shared if shared else d_rows[3:])


def _add_at(x: jax.Array, more: jax.Array, first: jax.Array) -> jax.Array:
    there = jax.lax.dynamic_slice_in_dim(x, first, more.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(x, there + more, first, 0)
