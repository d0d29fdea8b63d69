"""Attention row by row in query blocks with its own backward pass: the path for long rows.

One row at a time keeps the scores of a block in cache (CPU) or VMEM, so memory does not grow with
B * T * S; causal trimming is static, so a block touches only keys at or before it. The backward
recomputes scores from the saved log-sum-exp. Plain XLA, so it compiles everywhere. Figures that
chose this form are in WORKSPACE.md.

Time grows with B * N * T * (P + T / 2), temporaries with N * BLOCK * (P + T); saved for the
backward are the inputs, the output and one float32 per query and head.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.reference import NEG_INF

BLOCK = 128  # query block; 64 is a little faster at T = 256, 128 at T = 1024


def blocked_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    prefix_k: Float[Array, "P K H"],
    prefix_v: Float[Array, "P K H"],
    *,
    segment_start: Int[Array, "B T"],
    prefix_length: Int[Array, ""] | int,
    scale: float,
) -> Float[Array, "B T N H"]:
    """See `attention.api.attention`, for rows whose keys are their own T tokens."""
    B, T, N, H = q.shape
    K = k.shape[2]
    qg = q.reshape(B, T, K, N // K, H)
    length = jnp.asarray(prefix_length, jnp.int32)
    out: jax.Array = _rows(qg, k, v, prefix_k, prefix_v, segment_start, length, scale)
    return out.reshape(B, T, N, H)


def _blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]


def _scores(q, k, prefix_k, segment_start, prefix_length, start, scale):
    """Masked float32 scores [K, G, t, P + end] of the query block that begins at `start`."""
    end = k.shape[0]
    keys = jnp.concatenate([prefix_k, k]) if prefix_k.shape[0] else k  # one row, never all rows
    s = jnp.einsum("TKGH,SKH->KGTS", q, keys, preferred_element_type=jnp.float32) * scale
    query_index = start + jnp.arange(q.shape[0])
    key_index = jnp.arange(end)
    own = (key_index <= query_index[:, None]) & (key_index >= segment_start[:, None])
    pre = jnp.broadcast_to(
        jnp.arange(prefix_k.shape[0]) < prefix_length, (q.shape[0], prefix_k.shape[0])
    )
    return jnp.where(jnp.concatenate([pre, own], axis=1), s, NEG_INF)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _rows(q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale):
    return _rows_fwd(q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale)[0]


def _rows_fwd(q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale):
    def row(args):
        q, k, v, seg = args
        outs, lses = [], []
        for start, end in _blocks(q.shape[0]):
            s = _scores(
                q[start:end], k[:end], prefix_k, seg[start:end], prefix_length, start, scale
            )
            top = s.max(-1, keepdims=True)
            p = jnp.exp(s - top)
            total = p.sum(-1, keepdims=True)
            values = jnp.concatenate([prefix_v, v[:end]])
            p = (p / total).astype(v.dtype)
            o = jnp.einsum("KGTS,SKH->TKGH", p, values, preferred_element_type=jnp.float32)
            outs.append(o.astype(q.dtype))
            lses.append((top + jnp.log(total))[..., 0])
        return jnp.concatenate(outs), jnp.concatenate(lses, axis=-1)

    out, lse = jax.lax.map(row, (q, k, v, segment_start))
    return out, (q, k, v, prefix_k, prefix_v, segment_start, prefix_length, out, lse)


def _rows_bwd(scale, saved, d_out):
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length, out, lse = saved
    P = prefix_k.shape[0]

    def row(d_prefix, args):
        q, k, v, seg, out, lse, d_out = args
        T = q.shape[0]
        d_keys = jnp.zeros((P + T, *k.shape[1:]), jnp.float32)
        d_values = jnp.zeros((P + T, *v.shape[1:]), jnp.float32)
        delta = jnp.einsum("TKGH,TKGH->KGT", out, d_out, preferred_element_type=jnp.float32)
        d_q = []
        for start, end in _blocks(T):
            qb, gb = q[start:end], d_out[start:end]
            s = _scores(qb, k[:end], prefix_k, seg[start:end], prefix_length, start, scale)
            p = jnp.exp(s - lse[:, :, start:end, None])
            keys = jnp.concatenate([prefix_k, k[:end]])
            values = jnp.concatenate([prefix_v, v[:end]])
            f32 = {"preferred_element_type": jnp.float32}
            d_p = jnp.einsum("TKGH,SKH->KGTS", gb, values, **f32)
            d_s = (p * (d_p - delta[:, :, start:end, None]) * scale).astype(q.dtype)
            d_values = d_values.at[: P + end].add(
                jnp.einsum("KGTS,TKGH->SKH", p.astype(v.dtype), gb, **f32)
            )
            d_keys = d_keys.at[: P + end].add(jnp.einsum("KGTS,TKGH->SKH", d_s, qb, **f32))
            d_q.append(jnp.einsum("KGTS,SKH->TKGH", d_s, keys, **f32).astype(q.dtype))
        d_prefix = (d_prefix[0] + d_keys[:P], d_prefix[1] + d_values[:P])
        own = (d_keys[P:].astype(k.dtype), d_values[P:].astype(v.dtype))
        return d_prefix, (jnp.concatenate(d_q), *own)

    zeros = jnp.zeros(prefix_k.shape, jnp.float32)
    rows = (q, k, v, segment_start, out, lse, d_out)
    (d_pk, d_pv), (d_q, d_k, d_v) = jax.lax.scan(row, (zeros, zeros), rows)
    return d_q, d_k, d_v, d_pk.astype(prefix_k.dtype), d_pv.astype(prefix_v.dtype), None, None


_rows.defvjp(_rows_fwd, _rows_bwd)
