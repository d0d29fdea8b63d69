"""The specification of our attention in plain jnp: what every implementation must compute.

Scores and softmax are float32. Time and memory grow with B * N * T * (P + T): for tests.
"""

import jax.numpy as jnp

from cartridges_jax.attention.mask import NEG_INF, Attended, Rows, visible_keys


def reference_attention(rows: Rows, *, scale: float) -> Attended:
    """Attended values and log-sum-exp; see `attention.api.attention`."""
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length = rows.in_one_dtype()
    B, T, N, H = q.shape
    K, P = k.shape[2], prefix_k.shape[0]
    qg = (q.astype(jnp.float32) * scale).reshape(B, T, K, N // K, H)
    k, v, prefix_k, prefix_v = (x.astype(jnp.float32) for x in (k, v, prefix_k, prefix_v))
    own = jnp.einsum("BTKGH,BSKH->BKGTS", qg, k)
    own = jnp.where(visible_keys(segment_start)[:, None, None], own, NEG_INF)
    pre = jnp.einsum("BTKGH,PKH->BKGTP", qg, prefix_k)
    pre = jnp.where(jnp.arange(P) < prefix_length, pre, NEG_INF)
    # One softmax in two parts: the prefix is never repeated for each row.
    top = jnp.maximum(own.max(-1), pre.max(-1, initial=NEG_INF))[..., None]
    own, pre = jnp.exp(own - top), jnp.exp(pre - top)
    total = own.sum(-1) + pre.sum(-1)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", own, v) + jnp.einsum("BKGTP,PKH->BTKGH", pre, prefix_v)
    out /= total.transpose(0, 3, 1, 2)[..., None]
    lse = (top[..., 0] + jnp.log(total)).transpose(0, 3, 1, 2)
    return out.reshape(B, T, N, H).astype(q.dtype), lse.reshape(B, T, N)
