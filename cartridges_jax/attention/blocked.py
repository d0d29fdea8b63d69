"""Attention row by row in query blocks with its own backward pass: the path for long rows.

One row at a time keeps the scores of a block in cache (CPU) or VMEM, so memory does not grow with
B * T * S; causal trimming is static, so a block touches only keys at or before it. The backward
recomputes scores from the saved log-sum-exp. Plain XLA, so it compiles everywhere. Figures that
chose this form are in WORKSPACE.md.

Time grows with B * N * T * (P + T / 2), temporaries with N * BLOCK * (P + T); saved for the
backward are the inputs, the output and one float32 per query and head.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.reference import NEG_INF

BLOCK = 128  # query block; 64 is a little faster at T = 256, 128 at T = 1024
_F32 = {"preferred_element_type": jnp.float32}


def _blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]


def _grouped(x: jax.Array, K: int) -> jax.Array:
    """[B, T, N, ...] as [B, T, K, G, ...]."""
    return x.reshape(*x.shape[:2], K, x.shape[2] // K, *x.shape[3:])


def _scores(q, k, prefix_k, segment_start, prefix_length, start, scale):
    """Masked float32 scores [K, G, t, P + end] of the query block that begins at `start`."""
    end = k.shape[0]
    keys = jnp.concatenate([prefix_k, k]) if prefix_k.shape[0] else k  # one row, never all rows
    s = jnp.einsum("TKGH,SKH->KGTS", q, keys, **_F32) * scale
    query_index = start + jnp.arange(q.shape[0])
    key_index = jnp.arange(end)
    own = (key_index <= query_index[:, None]) & (key_index >= segment_start[:, None])
    pre = jnp.broadcast_to(
        jnp.arange(prefix_k.shape[0]) < prefix_length, (q.shape[0], prefix_k.shape[0])
    )
    return jnp.where(jnp.concatenate([pre, own], axis=1), s, NEG_INF)


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
    shared, lengths = _rows_and_prefix(prefix_k, prefix_v, prefix_length, B)

    def row(args):
        q, k, v, seg, length, *own_prefix = args
        pk, pv = (prefix_k, prefix_v) if shared else own_prefix
        outs, lses = [], []
        for start, end in _blocks(T):
            s = _scores(q[start:end], k[:end], pk, seg[start:end], length, start, scale)
            top = s.max(-1, keepdims=True)
            p = jnp.exp(s - top)
            total = p.sum(-1, keepdims=True)
            p = (p / total).astype(v.dtype)
            values = jnp.concatenate([pv, v[:end]])
            outs.append(jnp.einsum("KGTS,SKH->TKGH", p, values, **_F32).astype(q.dtype))
            lses.append((top + jnp.log(total))[..., 0])
        return jnp.concatenate(outs), jnp.moveaxis(jnp.concatenate(lses, axis=-1), -1, 0)

    own_prefixes = () if shared else (prefix_k, prefix_v)
    rows = (_grouped(q, k.shape[2]), k, v, segment_start, lengths, *own_prefixes)
    out, lse = jax.lax.map(row, rows)
    return out.reshape(B, T, N, H), lse.reshape(B, T, N)


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
    shared, lengths = _rows_and_prefix(prefix_k, prefix_v, prefix_length, B)

    def row(d_shared, args):
        q, k, v, seg, lse, delta, d_out, length, *own_prefix = args
        pk, pv = (prefix_k, prefix_v) if shared else own_prefix
        d_keys = jnp.zeros((P + T, *k.shape[1:]), jnp.float32)
        d_values = jnp.zeros((P + T, *v.shape[1:]), jnp.float32)
        lse, delta = jnp.moveaxis(lse, 0, -1), jnp.moveaxis(delta, 0, -1)  # [K, G, T]
        d_q = []
        for start, end in _blocks(T):
            qb, gb = q[start:end], d_out[start:end]
            s = _scores(qb, k[:end], pk, seg[start:end], length, start, scale)
            p = jnp.exp(s - lse[:, :, start:end, None])
            keys = jnp.concatenate([pk, k[:end]])
            values = jnp.concatenate([pv, v[:end]])
            d_p = jnp.einsum("TKGH,SKH->KGTS", gb, values, **_F32)
            d_s = (p * (d_p - delta[:, :, start:end, None]) * scale).astype(q.dtype)
            d_values = d_values.at[: P + end].add(
                jnp.einsum("KGTS,TKGH->SKH", p.astype(v.dtype), gb, **_F32)
            )
            d_keys = d_keys.at[: P + end].add(jnp.einsum("KGTS,TKGH->SKH", d_s, qb, **_F32))
            d_q.append(jnp.einsum("KGTS,SKH->TKGH", d_s, keys, **_F32).astype(q.dtype))
        d_own = (d_keys[P:].astype(k.dtype), d_values[P:].astype(v.dtype))
        d_row = (jnp.concatenate(d_q), *d_own)
        if not shared:
            return d_shared, (*d_row, d_keys[:P], d_values[:P])
        return (d_shared[0] + d_keys[:P], d_shared[1] + d_values[:P]), d_row

    grouped = [_grouped(x, K) for x in (q, lse, delta, d_out)]
    own_prefixes = () if shared else (prefix_k, prefix_v)
    rows = (grouped[0], k, v, segment_start, *grouped[1:], lengths, *own_prefixes)
    zero = jnp.zeros(prefix_k.shape if shared else (), jnp.float32)
    d_shared, d_rows = jax.lax.scan(row, (zero, zero), rows)
    d_q, d_k, d_v = d_rows[:3]
    return d_q.reshape(q.shape), d_k, d_v, *(d_shared if shared else d_rows[3:])
