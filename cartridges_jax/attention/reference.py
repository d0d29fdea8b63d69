"""The specification of our attention in plain jnp: what every kernel must compute.

A query sees (1) every live slot of its prefix and (2) in its own row the keys from the start of its
segment up to itself. One softmax runs over both. Scores and softmax are float32.

Time and memory grow with B * N * T * (P + S): fine for decoding and for tests, not for training.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEG_INF = -1e30  # finite, so that a padding row without any visible key is not NaN


def visible_keys(
    segment_start: Int[Array, "B T"], query_offset: Int[Array, ""] | int, num_keys: int
) -> jax.Array:
    """Returns the boolean mask [B, T, S] of the row's own keys that each query sees.

    Query t stands at key index `query_offset + t` and sees keys `segment_start[b, t] ..` itself.
    """
    query_index = query_offset + jnp.arange(segment_start.shape[1])
    key_index = jnp.arange(num_keys)
    causal = key_index[None, None, :] <= query_index[None, :, None]
    return causal & (key_index[None, None, :] >= segment_start[:, :, None])


def reference_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B *SK H"],
    v: Float[Array, "B *SK H"],
    prefix_k: Float[Array, "*RPK H"],
    prefix_v: Float[Array, "*RPK H"],
    segment_start: Int[Array, "B T"],
    prefix_length: Int[Array, "*R"],
    *,
    query_offset: Int[Array, ""] | int,
    scale: float,
    heads_first: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attended values and log-sum-exp; see `attention.api.attention`."""
    B, T, N, H = q.shape
    # Sizes by the letters of the arrays' axes.
    rows, slots = ("BKSH", "KPH") if heads_first else ("BSKH", "PKH")
    if prefix_k.ndim == 4:
        slots = "B" + slots
    K, S = (k.shape[rows.index(letter)] for letter in "KS")
    P = prefix_k.shape[slots.index("P")]
    qg = (q.astype(jnp.float32) * scale).reshape(B, T, K, N // K, H)
    own = jnp.einsum(f"BTKGH,{rows}->BKGTS", qg, k.astype(jnp.float32))
    mask = visible_keys(segment_start, query_offset, S)
    own = jnp.where(mask[:, None, None], own, NEG_INF)
    pre = jnp.einsum(f"BTKGH,{slots}->BKGTP", qg, prefix_k.astype(jnp.float32))
    live = jnp.arange(P) < jnp.broadcast_to(prefix_length, (B,))[:, None]  # [B, P]
    pre = jnp.where(live[:, None, None, None], pre, NEG_INF)
    # One softmax in two parts: the prefix is never repeated for each row.
    top = jnp.maximum(own.max(-1), pre.max(-1, initial=NEG_INF))[..., None]
    own, pre = jnp.exp(own - top), jnp.exp(pre - top)
    total = own.sum(-1) + pre.sum(-1)
    out = jnp.einsum(f"BKGTS,{rows}->BTKGH", own, v.astype(jnp.float32))
    out += jnp.einsum(f"BKGTP,{slots}->BTKGH", pre, prefix_v.astype(jnp.float32))
    out /= total.transpose(0, 3, 1, 2)[..., None]
    lse = (top[..., 0] + jnp.log(total)).transpose(0, 3, 1, 2)
    return out.reshape(B, T, N, H).astype(q.dtype), lse.reshape(B, T, N)
