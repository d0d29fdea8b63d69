"""The attention function of whole rows: training, scoring and reading; the engine's is `paged`.

It runs the implementation that `backends` chooses under `shard_map`, so that a kernel only ever
sees the rows and heads of its own device, also where several devices share the queries of one kv
head. The gradient of a prefix that rows share is summed over the "data" axis by the transpose of
the map, in the prefix's own dtype: pass trainable slots in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cartridges_jax.attention.backends import Implementation, choose
from cartridges_jax.attention.mask import Mask, Rows
from cartridges_jax.attention.reference import reference_attention
from cartridges_jax.attention.vjp import in_groups_of_rows, whole_rows
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT, head_axis, query_axis


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    *,
    scale: float,
    prefix: tuple[Float[Array, "*C P K H"], Float[Array, "*C P K H"]] | None = None,
    implementation: Implementation | None = None,
    return_lse: bool = False,
) -> Any:
    """Attends from each query to a prefix and to its own segment, under a mesh of `sharding`.

    One softmax runs over both, in float32.

    Args:
      q: queries, rotated.
      k: the row's own keys, rotated; N is a multiple of K, heads are grouped, never repeated.
      v: the row's own values, likewise.
      mask: what each query sees.
      scale: factor on the scores (`H ** -0.5` in all supported models).
      prefix: keys and values [P, K, H] that all rows share, or [C, P, K, H] of which each of C
        groups of rows, one after the other, shares one; groups are split over "data" as rows are.
        None for none. They are read in the dtype of `k`; their gradient has their own.
      implementation: None picks one, see `backends`; "pallas_interpret" runs the TPU kernels on a
        CPU.
      return_lse: also returns the log-sum-exp of each query's scores, differentiable.

    Returns:
      The attended values [B, T, N, H] in the dtype of `q`; with `return_lse` a pair, the second
      [B, T, N] float32.

    Raises:
      ValueError: if the implementation asked for is none or cannot serve the case, or shapes do not
        fit each other.
    """
    T, N, H = q.shape[1:]
    K = k.shape[2]
    heads, query_heads = head_axis(K), query_axis(N, K)
    queries = P(DATA, None, query_heads, None)
    keys = P(DATA, None, heads, None)
    if prefix is not None and prefix[1].ndim == 4 and len(prefix[1]) == 1:  # one group: all rows
        prefix = prefix[0][0], prefix[1][0]
        if mask.prefix_length is not None:
            mask = mask._replace(prefix_length=jnp.reshape(mask.prefix_length, ()))
    in_groups = prefix is not None and prefix[1].ndim == 4
    slots = P(DATA, *keys[1:]) if in_groups else P(*keys[1:])
    if prefix is None:
        prefix = (jax.sharding.reshard(jnp.zeros((0, K, H), k.dtype), slots),) * 2
    num_slots = prefix[1].shape[1 if in_groups else 0]
    length = jnp.minimum(num_slots if mask.prefix_length is None else mask.prefix_length, num_slots)
    if in_groups:
        groups = prefix[0].shape[0]
        if q.shape[0] % groups:
            raise ValueError(f"{q.shape[0]} rows cannot be shared out to {groups} prefixes")
        length = jax.sharding.reshard(jnp.broadcast_to(length, (groups,)), P(DATA))
    if N % K:
        raise ValueError(f"{N} query heads are no multiple of {K} kv heads")
    is_packed = mask.segment_start is not None
    chosen = choose(implementation, q, num_slots, return_lse, is_packed)
    start = mask.segment_start if is_packed else jnp.zeros((len(q), T), jnp.int32)
    start = jax.sharding.reshard(start, TOKENS_BT)

    def local(q, k, v, prefix_k, prefix_v, segment_start, length):
        if query_heads != heads:  # this device's queries are of one kv head
            k, v, prefix_k, prefix_v = map(_own_head, (k, v, prefix_k, prefix_v))
        # The padding in front of a prompt would see nothing: a softmax over no key is not a number.
        segment_start = jnp.clip(segment_start, 0, jnp.arange(T))
        rows = Rows(q, k, v, prefix_k, prefix_v, segment_start, length)
        if chosen == "reference":
            return in_groups_of_rows(reference_attention, rows, scale=scale)
        causal = chosen == "cudnn" and not is_packed
        return whole_rows(rows, scale, "cudnn_causal" if causal else chosen)

    mapped: Any = jax.shard_map(
        local,
        in_specs=(queries, keys, keys, slots, slots, TOKENS_BT, P(DATA) if in_groups else P()),
        out_specs=(queries, P(DATA, None, query_heads)),
        check_vma=False,  # the custom VJP inside knows nothing of varying axes
    )
    out, lse = mapped(q, k, v, *prefix, start, length.astype(jnp.int32))
    return (out, lse) if return_lse else out


def _own_head(x: Float[Array, "*A K H"]) -> jax.Array:
    """Of all kv heads the one whose queries this device has."""
    index = jax.lax.axis_index(MODEL) * x.shape[-2] // jax.lax.axis_size(MODEL)
    return jax.lax.dynamic_slice_in_dim(x, index, 1, -2)
