"""The one attention function of the model: training, scoring, prefill and cached decode.

It chooses an implementation, and runs it under `shard_map` so that a kernel only ever sees the
rows and kv heads of its own device. Gradients of the prefix, which all rows share, are summed over
the "data" axis by the transpose of that map.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.blocked import blocked_attention
from cartridges_jax.attention.reference import reference_attention
from cartridges_jax.sharding import DATA, TOKENS_BT, head_axis

Implementation = Literal["reference", "blocked"]

_SHORT = 32  # below this many queries a row, one batched product beats a loop over rows


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    segment_start: Int[Array, "B T"],
    scale: float,
    prefix: tuple[Float[Array, "P K H"], Float[Array, "P K H"]] | None = None,
    prefix_length: Int[Array, ""] | int | None = None,
    query_offset: Int[Array, ""] | int | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "B T N H"]:
    """Attends from each query to a prefix that all rows share and to its own segment.

    Query t of row b sees all live slots of the prefix and the row's keys from
    `segment_start[b, t]` up to key `query_offset + t`; one softmax runs over both, in float32.

    Args:
      q: queries, rotated.
      k: the row's own keys, rotated; N is a multiple of K, heads are grouped, never repeated.
      v: the row's own values.
      segment_start: first key index that each query may see.
      scale: factor on the scores (`H ** -0.5` in all supported models).
      prefix: keys and values of the prefix, without a batch axis; None for none.
      prefix_length: number of live prefix slots, the rest being padding; None for all.
      query_offset: key index of query 0, for a cache with S > T; None means S == T and 0.
      implementation: None picks one; "blocked" serves only S == T.

    Returns:
      The attended values, in the dtype of `q`.

    Raises:
      ValueError: if the implementation asked for cannot serve the case.
    """
    H = q.shape[-1]
    heads = head_axis(k.shape[2])
    rows, slots = P(DATA, None, heads, None), P(None, heads, None)
    if prefix is None:
        empty = jax.sharding.reshard(jnp.zeros((0, k.shape[2], H), k.dtype), slots)
        prefix, prefix_length = (empty, empty), 0
    if prefix_length is None:
        prefix_length = prefix[0].shape[0]
    if implementation is None:
        whole_row = query_offset is None and q.shape[1] > _SHORT
        implementation = "blocked" if whole_row else "reference"
    if implementation == "blocked" and query_offset is not None:
        raise ValueError("implementation='blocked' serves whole rows; query_offset must be None")

    offset = jnp.asarray(0 if query_offset is None else query_offset, jnp.int32)
    length = jnp.asarray(prefix_length, jnp.int32)

    def local(q, k, v, prefix_k, prefix_v, segment_start, offset, length):
        shared = {"segment_start": segment_start, "prefix_length": length, "scale": scale}
        if implementation == "blocked":
            return blocked_attention(q, k, v, prefix_k, prefix_v, **shared)
        return reference_attention(q, k, v, prefix_k, prefix_v, query_offset=offset, **shared)

    mapped = jax.shard_map(
        local,
        in_specs=(rows, rows, rows, slots, slots, TOKENS_BT, P(), P()),
        out_specs=rows,
        check_vma=False,  # the custom VJP inside knows nothing of varying axes
    )
    return mapped(q, k, v, *prefix, segment_start, offset, length)
