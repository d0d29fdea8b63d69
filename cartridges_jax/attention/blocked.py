"""Attention row by row in query blocks with its own backward pass: the path for long rows.

One row at a time keeps the scores of a block in cache (CPU) or VMEM, so memory does not grow with
B * T * S. A block of queries looks at a window of keys that ends with it and reaches back to the
first segment it holds; windows have a few sizes, so that packed rows cost what their conversations
do and few loops are compiled, one a size. Inside, heads come first, a group's are folded into its
queries, and scores are kept transposed, [K, keys, G * queries]: maxima and sums then run over rows
of numbers, which a CPU does many at a time. The backward recomputes scores from the saved
log-sum-exp.
Plain XLA, so it compiles everywhere. Figures that chose this form are in experiments/README.md.

Time grows with B * N * T * (P + window), temporaries with a block's scores, about
SCORES * (P + T) in float32; saved for the backward are the inputs, the output and one float32 per
query and head.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.mask import NEG_INF, Attended, Backward, Rows, head_product

BLOCK = 136  # most queries of a block
SCORES = 3400  # most queries of a block times heads: the scores of more leave the cache
_Visit = Callable[[int, Any, jax.Array], Any]  # see `_Blocks.visit`


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How a row of T tokens with N query heads on K kv heads is cut; the last block is padded."""

    T: int
    N: int
    K: int

    @property
    def size(self) -> int:
        """Queries of a block, rounded up by less than 16 to a width of scores that is fast.

        A CPU reads rows of scores in vectors of eight, and rows that begin multiples of 256 bytes
        apart share few lines of its cache: either costs a quarter of the time and more. Groups of
        a multiple of 64 heads have no such width, and are not rounded.
        """

        def slow(size: int) -> bool:
            width = self.N // self.K * size
            return width % 8 != 0 or width % 64 == 0

        count = -(-self.T // min(BLOCK, max(SCORES // self.N, 1)))
        least = -(-self.T // count)
        return min(range(least, least + 16), key=lambda size: (slow(size), size))

    @property
    def count(self) -> int:
        return -(-self.T // self.size)

    @property
    def windows(self) -> list[int]:
        """Numbers of blocks that a window may have: 1 2 3 4 5 6 7 8 10 12 15 ... all of them."""
        sizes = [1]
        while sizes[-1] < self.count:
            sizes.append(min(sizes[-1] + max(1, sizes[-1] // 4), self.count))
        return sizes

    def which_window(self, block: jax.Array | int, segment_start: Int[Array, "t"]) -> jax.Array:
        """Index of the smallest window of block `block` that reaches its first segment."""
        needed = block - jnp.min(segment_start) // self.size + 1
        return jnp.sum(jnp.asarray(self.windows) < needed)

    def visit(self, segment_start: Int[Array, "blocks t"], visit: _Visit, state: Any) -> Any:
        """Runs `visit` for all blocks, one size of window after another.

        A window's size has to be known when a loop is compiled. A loop for each size, over the
        blocks that need it, carries sums in place; a choice among sizes inside of one loop copies
        them for each block.

        Args:
          segment_start: first key that each query may see.
          visit: takes the window's number of blocks, the state and the block's index; returns the
            state.
          state: to begin with.
        """
        which = jax.vmap(self.which_window)(jnp.arange(self.count), segment_start)
        order = jnp.argsort(which)
        begin = jnp.int32(0)
        for i, size in enumerate(self.windows):
            end = jnp.sum(which <= i, dtype=jnp.int32)
            step = functools.partial(visit, size)
            state = jax.lax.fori_loop(begin, end, lambda j, s, step=step: step(s, order[j]), state)
            begin = end
        return state

    def pad(self, x: jax.Array) -> jax.Array:
        """A row [T, ...] with whole blocks."""
        extra = self.count * self.size - self.T
        return jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1)) if extra else x

    def cut(self, x: jax.Array) -> jax.Array:
        """A padded row as [blocks, size, ...]."""
        return x.reshape(self.count, self.size, *x.shape[1:])


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row's keys and its prefix's, heads first; everything is of one device."""

    blocks: _Blocks
    k: jax.Array  # [K, padded T, H]
    v: jax.Array
    prefix_k: jax.Array  # [K, P, H]
    prefix_v: jax.Array
    length: jax.Array  # live slots
    scale: float

    def window(self, block: jax.Array, num_blocks: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """First key of a block's window; keys and values behind the prefix, [K, P + w, H]."""
        size = self.blocks.size
        first = jnp.maximum(block + 1 - num_blocks, 0) * size

        def behind(prefix: jax.Array, x: jax.Array) -> jax.Array:
            own = jax.lax.dynamic_slice_in_dim(x, first, num_blocks * size, axis=1)
            return jnp.concatenate([prefix, own], axis=1)

        return first, behind(self.prefix_k, self.k), behind(self.prefix_v, self.v)

    def scores(self, q, keys, first, segment_start, block) -> jax.Array:
        """Masked float32 scores [K, P + w, G * t] of queries [K, G * t, H].

        `keys` [K, P + w, H] are a window's, of which the row's own begin with its key `first`;
        `segment_start` [t] is of the queries of block `block`.
        """
        s = head_product(keys, q, (2, 2)) * self.scale
        P, size = self.prefix_k.shape[1], self.blocks.size
        _, width, folded = s.shape

        def mask(block: jax.Array) -> jax.Array:
            key = first + jnp.arange(width - P)[:, None]
            query = block * size + jnp.arange(size)
            own = (key <= query) & (key >= segment_start)
            live = jnp.broadcast_to((jnp.arange(P) < self.length)[:, None], (P, size))
            return jnp.tile(jnp.concatenate([live, own]), folded // size)

        on_cpu = functools.partial(_apart, mask) if folded > size else mask
        visible = jax.lax.platform_dependent(block, cpu=on_cpu, default=mask)
        return jnp.where(visible, s, NEG_INF)


def _apart(mask: Callable[[jax.Array], jax.Array], block: jax.Array) -> jax.Array:
    """Makes a group's mask before it is used.

    XLA's CPU compiler would else work it out again for every kv head inside of the exponential,
    which then, with a remainder to take for each query, is not done eight numbers at a time. It
    cannot know that a block's number is never below zero, and does not look into a choice. Without
    groups no remainder is taken, and the choice costs more than it saves.
    """
    made = jax.eval_shape(mask, block)
    return jax.lax.cond(block >= 0, mask, lambda _: jnp.zeros(made.shape, made.dtype), block)


def _fold(blocks: _Blocks, x: Float[Array, "T N *H"]) -> jax.Array:
    """Cuts a row into blocks with a group's heads before its queries: [blocks, K, G * t, ...]."""
    cut = blocks.cut(blocks.pad(x))  # [blocks, t, N, ...]
    cut = cut.reshape(*cut.shape[:2], blocks.K, -1, *cut.shape[3:])
    return jnp.moveaxis(cut, 1, 3).reshape(blocks.count, blocks.K, -1, *x.shape[2:])


def _unfold(blocks: _Blocks, x: jax.Array) -> Float[Array, "T N *H"]:
    """The inverse of `_fold`."""
    split = x.reshape(*x.shape[:2], -1, blocks.size, *x.shape[3:])  # [blocks, K, G, t, ...]
    rows = jnp.moveaxis(split, 3, 1).reshape(-1, blocks.N, *x.shape[3:])
    return rows[: blocks.T]


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


def blocked_forward(rows: Rows, *, scale: float) -> Attended:
    """Attends within whole rows."""
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length = rows
    T, N = q.shape[1:3]
    blocks = _Blocks(T, N, k.shape[2])
    q, segment_start = _in_the_loop(q, segment_start)
    prefixes = (prefix_k.swapaxes(-2, -3), prefix_v.swapaxes(-2, -3))

    def attend(row: _Row, num_blocks: int, q, start, block):
        first, keys, values = row.window(block, num_blocks)
        s = row.scores(q, keys, first, start, block)
        top = s.max(1, keepdims=True)
        p = jnp.exp(s - top)
        total = p.sum(1, keepdims=True)
        out = head_product(values, p.astype(v.dtype), (1, 1)) / total  # [K, H, G * t]
        return out.swapaxes(1, 2).astype(q.dtype), (top + jnp.log(total))[:, 0]

    def one_row(args):
        q, k, v, start = args
        keys, values = (blocks.pad(x).swapaxes(-2, -3) for x in (k, v))
        row = _Row(blocks, keys, values, *prefixes, prefix_length, scale)

        queries, starts = _fold(blocks, q), _own_start(blocks, start)

        def one_block(window: int, state: Any, block: jax.Array) -> Any:
            found = attend(row, window, queries[block], starts[block], block)
            return tuple(x.at[block].set(y) for x, y in zip(state, found, strict=True))

        nothing = (jnp.zeros_like(queries), jnp.zeros(queries.shape[:-1], jnp.float32))
        out, lse = blocks.visit(starts, one_block, nothing)
        return _unfold(blocks, out), _unfold(blocks, lse)

    return jax.lax.map(one_row, (q, k, v, segment_start))


def blocked_backward(rows: Rows, back: Backward, *, scale: float) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v in their dtypes, and of prefix_k and prefix_v in float32."""
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length = rows
    T, N = q.shape[1:3]
    P = prefix_k.shape[0]
    blocks = _Blocks(T, N, k.shape[2])
    q, segment_start = _in_the_loop(q, segment_start)
    prefixes = (prefix_k.swapaxes(-2, -3), prefix_v.swapaxes(-2, -3))

    def pull(row: _Row, num_blocks: int, sums: Any, q, start, lse, delta, d_out, block):
        """Adds a block's gradients of keys and values to the sums; returns that of its queries."""
        first, keys, values = row.window(block, num_blocks)
        p = jnp.exp(row.scores(q, keys, first, start, block) - lse[:, None])
        d_p = head_product(values, d_out, (2, 2))
        d_s = (p * (d_p - delta[:, None]) * scale).astype(q.dtype)
        found = (
            head_product(d_s, q, (2, 1)),
            head_product(p.astype(v.dtype), d_out, (2, 1)),
        )  # [K, P + w, H]
        sums = tuple(
            (_add_at(own, d[:, P:], first), slots + d[:, :P])
            for (own, slots), d in zip(sums, found, strict=True)
        )
        return sums, head_product(d_s, keys, (1, 1)).astype(q.dtype)

    def one_row(d_prefix, args):
        q, k, v, start, lse, delta, d_out = args
        keys, values = (blocks.pad(x).swapaxes(-2, -3) for x in (k, v))
        row = _Row(blocks, keys, values, *prefixes, prefix_length, scale)

        starts = _own_start(blocks, start)
        cut = tuple(_fold(blocks, x) for x in (q, lse, delta, d_out))

        def one_block(window: int, state: Any, block: jax.Array) -> Any:
            sums, d_q = state
            q, lse, delta, d_out = (x[block] for x in cut)
            sums, found = pull(row, window, sums, q, starts[block], lse, delta, d_out, block)
            return sums, d_q.at[block].set(found)

        sums = tuple((jnp.zeros(row.k.shape, jnp.float32), slots) for slots in d_prefix)
        sums, d_q = blocks.visit(starts, one_block, (sums, jnp.zeros_like(cut[0])))
        (d_k, d_slots_k), (d_v, d_slots_v) = sums
        own = (x.swapaxes(-2, -3)[:T].astype(k.dtype) for x in (d_k, d_v))
        return (d_slots_k, d_slots_v), (_unfold(blocks, d_q), *own)

    each = (q, k, v, segment_start, back.lse, back.delta, back.d_out)
    zero = jnp.zeros(prefixes[0].shape, jnp.float32)
    d_prefix, (d_q, d_k, d_v) = jax.lax.scan(one_row, (zero, zero), each)
    return d_q, d_k, d_v, *(x.swapaxes(-2, -3) for x in d_prefix)


def _add_at(x: jax.Array, more: jax.Array, first: jax.Array) -> jax.Array:
    there = jax.lax.dynamic_slice_in_dim(x, first, more.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x, there + more, first, axis=1)
