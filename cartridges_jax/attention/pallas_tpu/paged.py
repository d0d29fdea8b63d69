"""A decoding step over pages on TPU: one kernel for what rows share and what is their own.

The work is a list of items: a few pages, and the run of the step's tokens that read them. A visit
of shared pages is one item for all its tokens, a row's own pages are items of one token. For each
kv head the grid goes over the items; their pages come from the pool in HBM by page tables in scalar
memory, the next item's while this one is computed, and each once. Queries and sums of all tokens
stay in VMEM. An item that is not there has the pages of the one before, which are not fetched
again.

Time is bound by the bytes of the pages, and by about half a microsecond an item; VMEM is
tokens * 8 * (2 * H + 256) float32 and two items' pages.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.mask import NEG_INF

ITEM_PAGES = 4
GROUP = 8  # a kv head's queries of a token, padded to the sublanes of a float32 tile
LANES = 128
TILES = (1, 8, 64)  # tokens of an item that are computed together
VMEM = 64 * 2**20  # bytes that the compiler may use: queries and sums of many rows


def paged_decode(
    q: Float[Array, "T K G H"],
    pool_k: Float[Array, "L pages J page H"],
    pool_v: Float[Array, "L pages J page H"],
    layer: Int[Array, ""],
    first_head: Int[Array, ""],
    items: tuple[jax.Array, ...],
    *,
    scale: float,
    interpret: bool = False,
) -> Float[Array, "T K G H"]:
    """The attended values of a step's tokens, of one device, in float32.

    Args:
      q: queries; of K of the pool's J kv heads.
      pool_k: keys of all layers.
      pool_v: values.
      layer: which one.
      first_head: of the K among J.
      items: see `items_of`.
      scale: factor on the scores.
      interpret: runs it on a CPU.
    """
    T, K, G, H = q.shape
    page = pool_k.shape[3]
    first, count, length, ids = items
    padded = -(-G // GROUP) * GROUP
    q = jnp.pad(q.swapaxes(0, 1), ((0, 0), (0, 0), (0, padded - G), (0, 0))).astype(jnp.float32)
    whole = pl.BlockSpec((1, T, padded, H), lambda head, item, *_: (head, 0, 0, 0))

    def page_of(place: int) -> pl.BlockSpec:
        def index(head, item, layer, first_head, first, count, length, ids):
            return layer[0], ids[item, place], first_head[0] + head, 0, 0

        return pl.BlockSpec((1, 1, 1, page, H), index)

    pages = [page_of(place) for place in range(ITEM_PAGES)]
    scalars = (layer.reshape(1), first_head.reshape(1), first, count, length, ids)
    read = first.shape[0] * ITEM_PAGES * page * H * K * pool_k.dtype.itemsize * 2
    out = pl.pallas_call(
        functools.partial(_kernel, scale=scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(K, first.shape[0]),
            in_specs=[whole, *pages, *pages],
            out_specs=whole,
            scratch_shapes=[
                pltpu.VMEM((T, padded, H), jnp.float32),
                pltpu.VMEM((T, padded, LANES), jnp.float32),
                pltpu.VMEM((T, padded, LANES), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((K, T, padded, H), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * read, transcendentals=read // (2 * H), bytes_accessed=read
        ),
        interpret=interpret,
        name="paged_decode",
    )(*scalars, q, *[pool_k] * ITEM_PAGES, *[pool_v] * ITEM_PAGES)
    return out[:, :, :G].swapaxes(0, 1)


def items_of(
    visits: tuple[jax.Array, ...],
    own_pages: Int[Array, "T W"],
    own_index: Int[Array, "T"],
    page: int,
) -> tuple[jax.Array, ...]:
    """The items of a step: first token, number of tokens, live slots, pages.

    Args:
      visits: first token, number of tokens, pages [M, ITEM_PAGES], live slots (none: no visit).
      own_pages: of each row.
      own_index: of the token that is read, in its row.
      page: slots of a page.
    """
    first, count, shared_pages, live = visits
    T, W = own_pages.shape
    per_row = -(-W // ITEM_PAGES)
    own = jnp.pad(own_pages, ((0, 0), (0, per_row * ITEM_PAGES - W))).reshape(-1, ITEM_PAGES)
    slots = ITEM_PAGES * page
    begin = jnp.arange(per_row, dtype=jnp.int32) * slots
    own_live = jnp.clip(own_index[:, None] + 1 - begin, 0, slots).reshape(-1)
    rows = jnp.repeat(jnp.arange(T, dtype=jnp.int32), per_row)
    first = jnp.concatenate([first, rows])
    count = jnp.concatenate([count, jnp.ones_like(rows)])
    live = jnp.concatenate([live, own_live])
    ids = jnp.concatenate([shared_pages, own])
    # What is not there is what was there before: then nothing is fetched for it.
    there = jnp.arange(ITEM_PAGES) * page < live[:, None]
    at = jnp.where(there, jnp.arange(len(ids), dtype=jnp.int32)[:, None], 0)
    ids = jnp.take_along_axis(ids, jax.lax.cummax(at, axis=0), axis=0)
    return first, count, live, ids


def _kernel(
    layer_ref, first_head_ref, first_ref, count_ref, length_ref, ids_ref, q_ref, *refs: Any,
    scale: float,
) -> None:  # fmt: skip
    """One item of one head: its pages against its tokens' queries, into their sums."""
    del layer_ref, first_head_ref, ids_ref
    k_refs, v_refs = refs[:ITEM_PAGES], refs[ITEM_PAGES : 2 * ITEM_PAGES]
    out_ref, sums, tops, totals = refs[2 * ITEM_PAGES :]
    item = pl.program_id(1)
    T, padded, H = sums.shape
    first, count, length = first_ref[item], count_ref[item], length_ref[item]

    @pl.when(item == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)
        tops[...] = jnp.full_like(tops, NEG_INF)
        totals[...] = jnp.zeros_like(totals)

    def of_tiles(size: int) -> None:
        k = jnp.concatenate([ref[0, 0, 0] for ref in k_refs])
        v = jnp.concatenate([ref[0, 0, 0] for ref in v_refs])
        live = jax.lax.broadcasted_iota(jnp.int32, (size * padded, len(k)), 1) < length

        def tile(i: jax.Array, _: None) -> None:
            wanted = first + i * size
            at = jnp.minimum(wanted, T - size)  # the last one goes back over tokens that are done
            here = pl.ds(at, size)
            queries = q_ref[0, here].reshape(size * padded, H).astype(k.dtype)
            s = jax.lax.dot_general(
                queries, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
            )
            s = jnp.where(live, s * scale, NEG_INF)
            old_top, old_total = (
                x[here].reshape(size * padded, LANES)[:, :1] for x in (tops, totals)
            )
            top = jnp.maximum(old_top, s.max(axis=1, keepdims=True))
            p = jnp.exp(s - top)
            kept = jnp.exp(old_top - top)
            total = old_total * kept + p.sum(axis=1, keepdims=True)
            values = jax.lax.dot_general(
                p.astype(v.dtype), v, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
            old = sums[here].reshape(size * padded, H)
            token = at + jax.lax.broadcasted_iota(jnp.int32, (size * padded, 1), 0) // padded
            mine = (token >= wanted) & (token < first + count)
            new = jnp.where(mine, old * kept + values, old)
            sums[here] = new.reshape(size, padded, H)
            wide = (size * padded, LANES)
            for ref, before, after in ((tops, old_top, top), (totals, old_total, total)):
                x = jnp.broadcast_to(jnp.where(mine, after, before), wide)
                ref[here] = x.reshape(size, padded, LANES)

        jax.lax.fori_loop(0, (count + size - 1) // size, tile, None)

    fitting = [tile for tile in TILES if tile <= T] or [T]
    for i, size in enumerate(fitting):
        above = count > (fitting[i - 1] if i else 0)
        within = count <= size if size != fitting[-1] else True
        pl.when((length > 0) & above & within)(functools.partial(of_tiles, size))

    @pl.when(item == pl.num_programs(1) - 1)
    def _():
        total = totals[...][:, :, :1]
        out_ref[0] = sums[...] / jnp.maximum(total, 1e-30)
