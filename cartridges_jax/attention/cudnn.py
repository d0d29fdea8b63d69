"""Attention on NVIDIA GPUs with cuDNN's fused kernels: the path for long rows in half precision.

The prefix and the row's own keys are two calls, joined by their log-sum-exp, so a prefix that rows
share is never repeated: all rows' queries are one long row to it. Backward, each call gets the
joined output and log-sum-exp, with which its scores turn into the probabilities of the one softmax
over both; so both give parts of the true gradients. `jax.nn.dot_product_attention` cannot do that,
as it drops the gradient of the log-sum-exp and rounds it to half precision: the calls beneath it
are used, which jax keeps private (the same from 0.10.2 to 0.11.2). Segments of packed rows are a
bias that rows' heads share, and the blocks above the diagonal are skipped.

Time grows with B * N * T * (P + T / 2), temporaries with B * T * T for the bias of packed rows,
twice q for the parts; saved for the backward are the inputs, the output and one float32 per query
and head. The gradient of a shared prefix is summed over rows in float32 and rounded once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.mask import Attended, Backward, Rows, visible_keys

_HIDDEN = -0.5 * float(jnp.finfo(jnp.float16).max)  # finite in every half precision
MOST_HEAD_DIM = 128
MOST_MASK = 2**31  # entries of the bias that hides segments, of all devices: 4 GiB


@functools.cache
def _calls() -> Any:
    """The private module of jax with its cuDNN calls, looked for only where a GPU is to use it.

    Raises:
      ImportError: where this jax has none.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


@functools.cache
def _what_is_missing() -> str | None:
    """What this machine's GPU or jax lacks; None for nothing."""
    try:
        fused = _calls()
    except ImportError:
        return f"was not found in jax {jax.__version__}, whose private calls are used"
    try:
        fused.check_cudnn_version()
    except RuntimeError as error:
        return f"was not found: {error}"
    if not fused.check_compute_capability("8.0"):
        return "needs a GPU of compute capability 8.0 or newer"
    return None


def why_not_cudnn(q: jax.Array, return_lse: bool, is_packed: bool = True) -> str | None:
    """Why cuDNN cannot serve whole rows of these queries; None if it can."""
    if jax.default_backend() != "gpu":
        return f"needs a GPU; jax runs on {jax.default_backend()}"
    if _what_is_missing():
        return _what_is_missing()
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"serves bfloat16 and float16, not {q.dtype}"
    if q.shape[-1] % 8 or q.shape[-1] > MOST_HEAD_DIM:
        return f"serves heads of a multiple of 8 up to {MOST_HEAD_DIM}, not {q.shape[-1]}"
    if q.shape[1] % 2:
        return f"serves rows of an even length, not {q.shape[1]}"
    mask = q.shape[0] * q.shape[1] ** 2 if is_packed else 0
    if mask > MOST_MASK:
        return f"serves masks of at most {MOST_MASK / 2**29:.0f} GiB, not {mask / 2**29:.0f}"
    if return_lse:
        return "has no gradient of the log-sum-exp; return_lse must be False"
    return None


def _bias(segment_start: Int[Array, "B T"], dtype: Any) -> Float[Array, "B 1 T T"]:
    """What to add to the scores of a row's own keys."""
    seen = visible_keys(segment_start)
    return jnp.where(seen, 0.0, _HIDDEN).astype(dtype)[:, None]


def _one_row(rows: jax.Array) -> jax.Array:
    """Rows [B, T, ...] as a call on the prefix takes them: one long row."""
    return rows.reshape(1, -1, *rows.shape[2:])


def _lengths(q: jax.Array, prefix_length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Queries and live slots of a call on the prefix.

    cuDNN knows no row without a key: one without live slots sees a slot, and what that gives is
    thrown away.
    """
    slots = jnp.maximum(prefix_length, 1).astype(jnp.int32)[None]
    return jnp.full((1,), q.shape[1], jnp.int32), slots


def cudnn_forward(rows: Rows, *, scale: float, is_packed: bool = True) -> Attended:
    """Attended values and log-sum-exp of whole rows; on a GPU alone."""
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length = rows
    B, T, N, _ = q.shape
    fused = _calls()
    options: Any = {"scale": scale, "return_residual": True}
    bias = _bias(segment_start, q.dtype) if is_packed else None
    own: Any = fused.dot_product_attention(
        q, k, v, bias=bias, mask_type=fused.MaskType.CAUSAL, **options
    )
    out, lse = own[0], own[1].swapaxes(1, 2)
    if not prefix_k.shape[0]:
        return out, lse
    queries = _one_row(q)
    of_queries, of_slots = _lengths(queries, prefix_length)
    slots: Any = fused.dot_product_attention(
        queries, prefix_k[None], prefix_v[None], q_seqlen=of_queries, kv_seqlen=of_slots,
        mask_type=fused.MaskType.PADDING, **options,
    )  # fmt: skip
    out_p, lse_p = slots[0].reshape(q.shape), slots[1].swapaxes(1, 2).reshape(B, T, N)
    lse_p = jnp.where(prefix_length > 0, lse_p, -jnp.inf)
    joined = jnp.logaddexp(lse, lse_p)
    own_share, share = (jnp.exp(part - joined)[..., None] for part in (lse, lse_p))
    return (own_share * out + share * out_p).astype(q.dtype), joined


def cudnn_backward(
    rows: Rows, back: Backward, *, scale: float, is_packed: bool = True
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v, prefix_k and prefix_v in their dtypes.

    `back.delta` is not used: the kernels sum out * d_out themselves.
    """
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length = rows
    out, lse, _, d_out = back
    fused = _calls()
    bias = _bias(segment_start, q.dtype) if is_packed else None
    d_q, d_k, d_v = _part_gradients(
        q, k, v, bias, None, lse, out, d_out, scale, fused.MaskType.CAUSAL
    )
    if not prefix_k.shape[0]:
        return d_q, d_k, d_v, jnp.zeros_like(prefix_k), jnp.zeros_like(prefix_v)
    queries, lse, out, d_out = (_one_row(x) for x in (q, lse, out, d_out))
    lengths = _lengths(queries, prefix_length)
    d_q_p, *d_slots = _part_gradients(
        queries, prefix_k[None], prefix_v[None], None, lengths, lse, out, d_out, scale,
        fused.MaskType.PADDING,
    )  # fmt: skip
    live = jnp.arange(prefix_k.shape[0]) < prefix_length
    d_slots = (jnp.where(live[:, None, None], d[0], 0) for d in d_slots)
    d_q_p = jnp.where(prefix_length > 0, d_q_p, 0)
    return (d_q + d_q_p.reshape(q.shape)).astype(q.dtype), d_k, d_v, *d_slots


def _part_gradients(q, k, v, bias, lengths, lse, out, d_out, scale, mask_type) -> list[jax.Array]:
    """Gradients of q, k, v by one part of the keys, given the whole softmax's `lse` and `out`."""
    none = jnp.zeros(0, q.dtype)
    q_length, k_length = lengths or (none, none)
    fused = _calls()
    return fused._dot_product_attention_bwd_p_wrapper.bind(
        q, k, v, none if bias is None else bias, q_length, k_length, none, none, none, none,
        lse.swapaxes(1, 2), out, d_out.astype(q.dtype),
        scale=scale, seed=42, dropout_rate=0.0, variadic_args=(bias is not None, False),
        mask_type=mask_type, layout=fused.AttentionLayout.BTNH.value, sliding_window_length=None,
    )  # fmt: skip
