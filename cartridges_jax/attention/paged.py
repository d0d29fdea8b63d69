"""Attention of a step's tokens over pages: of spans that many rows share, and of each row's own.

A step writes the keys and values of its tokens to their pages, and then reads what they follow. A
`Visit` is a run of pages of one span, and the run of tokens that follow it: all rows behind a
cartridge, all tokens of a prompt. Its pages are read once, as one product with the queries of all
its tokens; the parts of a token's softmax are merged by their log-sum-exp. What a decoding row has
of its own is read row by row, some rows at a time.

Plain XLA, for every platform; on TPU a kernel decodes (`pallas_tpu/paged.py`). Nothing is compiled
in but the number of tokens: how many pages there are and who follows them are loop bounds. Time
grows with the slots that are read times the queries that read them; temporaries are the pages of
one visit, or of one page of `OWN_ROWS` rows, and the step's values in float32. A shared page is
copied once a step for all its followers, a row's own page once.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.mask import NEG_INF, head_product
from cartridges_jax.attention.pallas_tpu import paged as pallas_paged
from cartridges_jax.sharding import DATA, MODEL, head_axis, on_tpu, query_axis

VISIT_PAGES = 4  # most pages of a visit: their scores and keys stay in a CPU's cache
OWN_ROWS = 16  # decoding rows whose own pages are read together
TILES = (1, 8, 64)  # numbers of tokens that a visit's product may take at a time
Implementation = Literal["xla", "pallas", "pallas_interpret"]
Numbers = Any  # int32, on the device, or on the host while a step is planned
WRITTEN = 16  # slots that a TPU writes at a time: those of a tile of bfloat16
EVERYBODY = -(2**30)  # `Visits.base` of slots that all its tokens see


class Shape(NamedTuple):
    """What is compiled of a visit: tokens that its product takes at a time, and its pages."""

    tile: int
    pages: int


def shapes_of(tokens: int, is_decode: bool) -> tuple[Shape, ...]:
    """The shapes of visits that a step of so many tokens has loops for.

    Prompts are long enough for the largest tile; what they follow may be short or long.
    """
    fitting = [tile for tile in TILES if tile <= tokens] or [tokens]
    if is_decode:
        pages = VISIT_PAGES if on_tpu() else VISIT_PAGES // 2
        return tuple(Shape(tile, pages) for tile in fitting)
    return Shape(fitting[-1], 1), Shape(fitting[-1], VISIT_PAGES)


class PagedKV(NamedTuple):
    """Keys and values of a pool, rotated keys: [L, pages, K, page, H], pages split over "data".

    For an unstacked model, tuples of each layer's arrays.
    """

    k: Any
    v: Any

    @property
    def page_size(self) -> int:
        return (self.k[0] if isinstance(self.k, tuple) else self.k).shape[-2]


class Visits(NamedTuple):
    """Which tokens of a step read which pages; sorted by their shape, see `shapes_of`.

    All are of one device of "data" and counted in its own tokens and pages; over the mesh they lie
    one behind the other.
    """

    first: Numbers  # [M], of a run of the step's tokens
    count: Numbers  # [M], of them
    pages: Numbers  # [M, VISIT_PAGES]
    base: Numbers  # [M], index of the first slot, as `Step.own_index` counts, or EVERYBODY
    length: Numbers  # [M], live slots
    bounds: Numbers  # [shapes], for each the end of its visits


class Step(NamedTuple):
    """Where the tokens of a step are written, and what they see.

    A token sees the visits it is part of, as far as their slots' index does not exceed its own,
    and, where `own_pages` are given, the slots of its row's own pages up to itself.
    """

    page: Numbers  # [T]
    slot: Numbers  # [T], in the page
    own_index: Numbers  # [T], of the token in its own row
    visits: Visits
    own_pages: Numbers | None  # [T, W], of decoding rows, which have one token each


class _Part(NamedTuple):
    """A softmax over some of the keys, not yet divided."""

    values: jax.Array  # [T, K, G, H]
    top: jax.Array  # [T, K, G], the highest score
    total: jax.Array  # [T, K, G], the sum of exponentials below it


def paged_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    pool: PagedKV,
    layer: Any,
    step: Step,
    *,
    scale: float,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T N H"], PagedKV]:
    """Writes a step's keys and values of one layer to their pages, and attends to what is there.

    Args:
      q: queries of the step's tokens, rotated; rows over "data".
      k: their keys, rotated.
      v: their values.
      pool: all layers'; updated in place under `jit`.
      layer: index; of an unstacked pool a number.
      step: who is written where, and sees what.
      scale: factor on the scores.
      implementation: None for the kernel of `pallas_tpu.paged` where a TPU decodes, else "xla".

    Returns:
      The attended values in the dtype of `q`, and the pool.
    """
    is_decode = step.own_pages is not None
    if implementation is None:
        implementation = "pallas" if is_decode and on_tpu() else "xla"
    K, N = k.shape[2], q.shape[2]
    heads, query_heads = head_axis(K), query_axis(N, K)
    is_apart = isinstance(pool.k, tuple)
    pages = P(DATA, heads, None, None) if is_apart else P(None, DATA, heads, None, None)
    queries, keys = P(DATA, None, query_heads, None), P(DATA, None, heads, None)
    of_step = jax.tree.map(lambda x: P(DATA, *([None] * (x.ndim - 1))), step)
    stacked = (pool.k[layer], pool.v[layer]) if is_apart else pool
    index = jnp.zeros((), jnp.int32) if is_apart else jnp.asarray(layer, jnp.int32)

    def local(q, k, v, pool_k, pool_v, index, step):
        at = () if is_apart else (index,)
        B, T, N, H = q.shape
        k, v = (x.reshape(B * T, *x.shape[2:]).astype(pool_k.dtype) for x in (k, v))
        pool_k, pool_v = _written((pool_k, pool_v), (k, v), at, step)
        own_head = None
        if query_heads != heads:  # this device's queries are of one kv head
            own_head = jax.lax.axis_index(MODEL) * K // jax.lax.axis_size(MODEL)

        def read(x: jax.Array, ids: jax.Array) -> jax.Array:
            """Pages of this layer, [*ids, K, page, H]."""
            found = x[(*at, ids)]
            if own_head is None:
                return found
            return jax.lax.dynamic_slice_in_dim(found, own_head, 1, found.ndim - 3)

        def read_both(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
            return read(pool_k, ids), read(pool_v, ids)

        num_heads = k.shape[1] if own_head is None else 1
        grouped = q.reshape(B * T, num_heads, N // num_heads, H)
        if implementation != "xla":
            visits = step.visits
            is_visit = jnp.arange(len(visits.first)) < visits.bounds[-1]
            live = jnp.where(is_visit, visits.length, 0)
            shared = visits.first, visits.count, visits.pages, live
            out = pallas_paged.paged_decode(
                grouped, pool_k, pool_v, index,
                jnp.int32(0) if own_head is None else own_head.astype(jnp.int32),
                pallas_paged.items_of(
                    shared, step.own_pages, step.own_index, pool_k.shape[-2]
                ),
                scale=scale, interpret=implementation == "pallas_interpret",
            )  # fmt: skip
            return out.reshape(B, T, N, H).astype(q.dtype), pool_k, pool_v
        part = _visited(grouped, read_both, step, scale)
        if step.own_pages is not None:
            own = _own(grouped, read_both, step.own_pages, step.own_index, scale)
            part = merged(part, own)
        # What only rounds a step up sees nothing, and must not become NaN.
        out = part.values / jnp.maximum(part.total, 1e-30)[..., None]
        return out.reshape(B, T, N, H).astype(q.dtype), pool_k, pool_v

    mapped: Any = jax.shard_map(
        local,
        in_specs=(queries, keys, keys, pages, pages, P(), of_step),
        out_specs=(queries, pages, pages),
        check_vma=False,
    )
    out, new_k, new_v = mapped(q, k, v, *stacked, index, step)
    if not is_apart:
        return out, PagedKV(new_k, new_v)
    both = zip(pool, (new_k, new_v), strict=True)
    return out, PagedKV(*((*old[:layer], new, *old[layer + 1 :]) for old, new in both))


def _written(
    pool: tuple[jax.Array, jax.Array],
    new: tuple[jax.Array, jax.Array],
    layer: tuple[jax.Array, ...],
    step: Step,
) -> tuple[jax.Array, jax.Array]:
    """A layer's pool with the step's keys and values [T, K, H] in their slots, in place."""
    if not on_tpu():
        at = (*layer, step.page, slice(None), step.slot)
        return pool[0].at[at].set(new[0]), pool[1].at[at].set(new[1])
    # A scatter, or a write of one slot, has the compiler of a TPU turn the whole pool to another
    # layout: so a few slots are read and written back with the new one among them.
    page_size = pool[0].shape[-2]
    few = min(WRITTEN, page_size)

    def write(i: jax.Array, pool: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        slot = step.slot[i]
        first = slot // few * few
        at = (*layer, step.page[i], 0, first, 0)
        is_new = (first + jnp.arange(few) == slot)[:, None]

        def one(pool: jax.Array, new: jax.Array) -> jax.Array:
            sizes = (*[1] * len(layer), 1, pool.shape[-3], few, pool.shape[-1])
            old = jax.lax.dynamic_slice(pool, at, sizes)
            token = jax.lax.dynamic_index_in_dim(new, i, 0, keepdims=False)[:, None]
            return jax.lax.dynamic_update_slice(pool, jnp.where(is_new, token, old), at)

        return one(pool[0], new[0]), one(pool[1], new[1])

    return jax.lax.fori_loop(0, len(step.page), write, pool)


def merged(a: _Part, b: _Part) -> _Part:
    """The softmax over the keys of both."""
    top = jnp.maximum(a.top, b.top)
    of_a, of_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    values = a.values * of_a[..., None] + b.values * of_b[..., None]
    return _Part(values, top, a.total * of_a + b.total * of_b)


def _nothing(q: Float[Array, "T K G H"]) -> _Part:
    """A softmax over no keys."""
    empty = jnp.zeros(q.shape, jnp.float32)
    return _Part(empty, empty[..., 0] + NEG_INF, empty[..., 0])


def _visited(q: Float[Array, "T K G H"], read: Any, step: Step, scale: float) -> _Part:
    """All visits, one after the other, into the sums of their tokens."""
    visits, begin, part = step.visits, jnp.int32(0), _nothing(q)
    for i, shape in enumerate(shapes_of(len(q), step.own_pages is not None)):

        def visit(j: jax.Array, part: _Part, shape: Shape = shape) -> _Part:
            return _one_visit(q, read, step, j, shape, part, scale)

        part = jax.lax.fori_loop(begin, visits.bounds[i], visit, part)
        begin = visits.bounds[i]
    return part


def _one_visit(
    q: Float[Array, "T K G H"],
    read: Any,
    step: Step,
    index: jax.Array,
    shape: Shape,
    part: _Part,
    scale: float,
) -> _Part:
    """One visit, a tile of its tokens at a time."""
    T, K, G, H = q.shape
    size = shape.tile
    first, count, ids, base, length = (x[index] for x in step.visits[:5])
    k, v = (x.swapaxes(0, 1).reshape(K, -1, H) for x in read(ids[: shape.pages]))
    slot = jnp.arange(k.shape[1])
    index_of_slot = jnp.where(slot < length, base + slot, 2**30)

    def tile(i: jax.Array, part: _Part) -> _Part:
        wanted = first + i * size
        at = jnp.minimum(wanted, T - size)  # the last tile goes back over tokens that are done

        def rows(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, at, size)

        token = at + jnp.arange(size)
        mine = (token >= wanted) & (token < first + count)
        limit = jnp.where(mine, rows(step.own_index), EVERYBODY - 1)
        s = head_product(rows(q).swapaxes(0, 1).reshape(K, size * G, H), k, (2, 2)) * scale
        s = s.reshape(K, size, G, -1)
        s = jnp.where((index_of_slot <= limit[:, None])[None, :, None], s, NEG_INF)
        top = s.max(-1)
        p = jnp.exp(s - top[..., None])
        values = head_product(p.reshape(K, size * G, -1).astype(v.dtype), v, (2, 1))
        seen = _Part(values.reshape(K, size, G, H), top, p.sum(-1))
        old = _Part(*map(rows, part))
        new = merged(old, _Part(*(x.swapaxes(0, 1) for x in seen)))
        return _Part(*(
            jax.lax.dynamic_update_slice_in_dim(
                x, jnp.where(mine.reshape(-1, *[1] * (x.ndim - 1)), b, a), at, 0
            )
            for x, a, b in zip(part, old, new, strict=True)
        ))  # fmt: skip

    return jax.lax.fori_loop(0, (count + size - 1) // size, tile, part)


def _own(
    q: Float[Array, "T K G H"],
    read: Any,
    own_pages: Int[Array, "T W"],
    own_index: Int[Array, "T"],
    scale: float,
) -> _Part:
    """Each row's query against its own pages, `OWN_ROWS` rows and one page of each at a time."""
    T, size = len(q), min(OWN_ROWS, len(q))
    assert T % size == 0, "batches are of few sizes"

    def some_rows(args: tuple[jax.Array, ...]) -> _Part:
        q, table, last = args

        def page(i: jax.Array, part: _Part) -> _Part:
            k, v = read(jax.lax.dynamic_index_in_dim(table, i, 1, keepdims=False))
            s = jnp.einsum("TKGH,TKSH->TKGS", q, k, preferred_element_type=jnp.float32) * scale
            slot = i * k.shape[2] + jnp.arange(k.shape[2])
            s = jnp.where((slot <= last[:, None])[:, None, None], s, NEG_INF)
            top = s.max(-1)
            p = jnp.exp(s - top[..., None])
            values = jnp.einsum(
                "TKGS,TKSH->TKGH", p.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return merged(part, _Part(values, top, p.sum(-1)))

        page_size = jax.eval_shape(read, table[:, 0])[0].shape[2]
        return jax.lax.fori_loop(0, jnp.max(last) // page_size + 1, page, _nothing(q))

    args = (q, own_pages, own_index)
    if size == T:
        return some_rows(args)
    tiles = [x.reshape(T // size, size, *x.shape[1:]) for x in args]
    return jax.tree.map(lambda x: x.reshape(T, *x.shape[2:]), jax.lax.map(some_rows, tuple(tiles)))
