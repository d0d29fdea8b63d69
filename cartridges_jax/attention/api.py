"""The one attention function of the model: training, scoring, prefill and cached decode.

It chooses an implementation, and runs it under `shard_map` so that a kernel only ever sees the
rows and kv heads of its own device. Whole rows have one custom VJP, whose two passes an
implementation supplies; the gradient of a prefix that rows share is summed over the "data" axis by
the transpose of the map, in the prefix's own dtype: pass trainable slots in float32.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.blocked import blocked_backward, blocked_forward
from cartridges_jax.attention.cudnn import cudnn_backward, cudnn_forward, why_not_cudnn
from cartridges_jax.attention.pallas_tpu import pallas_backward, pallas_forward
from cartridges_jax.attention.reference import reference_attention
from cartridges_jax.sharding import DATA, TOKENS_BT, head_axis, on_tpu

Implementation = Literal["reference", "blocked", "pallas", "pallas_interpret", "cudnn"]
# What a rematerialisation policy should save, so that the forward kernel does not run twice.
SAVED_NAMES = ("attention_out", "attention_lse")

# Up to this many queries a row, one batched product serves. With 32 it would be as fast as a loop
# over rows, but XLA unrolls it on CPU: ten seconds of compiling instead of three.
_SHORT = 8
_MOST_SCORES = 2**28  # float32 scores of such a product: 1 GiB
_PALLAS_HEADS = (64, 128, 256)
_log = logging.getLogger(__name__)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B *SK H"],
    v: Float[Array, "B *SK H"],
    *,
    segment_start: Int[Array, "B T"],
    scale: float,
    prefix: tuple[Float[Array, "*RPK H"], Float[Array, "*RPK H"]] | None = None,
    prefix_length: Int[Array, "*R"] | int | None = None,
    query_offset: Int[Array, ""] | int | None = None,
    heads_first: bool = False,
    implementation: Implementation | None = None,
    return_lse: bool = False,
) -> Any:
    """Attends from each query to a prefix and to its own segment.

    Query t of row b sees all live slots of the prefix and the row's keys from
    `segment_start[b, t]` up to key `query_offset + t`, its own, which it always sees; one softmax
    runs over both, in float32.

    Args:
      q: queries, rotated.
      k: the row's own keys [B, S, K, H], rotated; N is a multiple of K, heads are grouped, never
        repeated.
      v: the row's own values, likewise.
      segment_start: first key index that each query may see.
      scale: factor on the scores (`H ** -0.5` in all supported models).
      prefix: keys and values of the prefix, [P, K, H] shared by all rows or [B, P, K, H] of each;
        None for none. They are read in the dtype of `k`; their gradient has their own.
      prefix_length: number of live prefix slots, the rest being padding; [B] where each row has
        its own prefix; None for all.
      query_offset: key index of query 0, for a cache with S > T; None means S == T and 0.
      heads_first: keys and values are [B, K, S, H], those of the prefix [K, P, H] or [B, K, P, H]:
        the layout to keep a cache in, as a step then reads it in order.
      implementation: None picks one: for whole rows Pallas kernels on TPU, "cudnn" on a GPU where
        it serves the case, and "blocked" elsewhere; for a few queries or a cache "reference".
        "pallas_interpret" runs the kernels on a CPU.
      return_lse: also returns the log-sum-exp of each query's scores, differentiable.

    Returns:
      The attended values [B, T, N, H] in the dtype of `q`; with `return_lse` a pair, the second
      [B, T, N] float32.

    Raises:
      ValueError: if the implementation asked for is none or cannot serve the case, or shapes do not
        fit each other.
    """
    H = q.shape[-1]
    K = k.shape[1 if heads_first else 2]
    heads = head_axis(K)
    shared = prefix is None or prefix[0].ndim == 3
    queries = P(DATA, None, heads, None)
    rows = P(DATA, heads, None, None) if heads_first else queries
    slots = P(*rows[1:]) if shared else rows
    if prefix is None:
        none = (K, 0, H) if heads_first else (0, K, H)
        empty = jax.sharding.reshard(jnp.zeros(none, k.dtype), slots)
        prefix, prefix_length = (empty, empty), 0
    if prefix_length is None:
        prefix_length = prefix[0].shape[-2 if heads_first else -3]
    length = jnp.asarray(prefix_length, jnp.int32)
    if not shared:
        length = jax.sharding.reshard(jnp.broadcast_to(length, q.shape[:1]), P(DATA))
    S = k.shape[2 if heads_first else 1]
    scores = q.size // H * (S + prefix[0].shape[-2 if heads_first else -3])
    if implementation is None and query_offset is not None:
        _log_once("attention: one batched product behind a cache")
        implementation = "reference"
    elif implementation is None and q.shape[1] <= _SHORT and scores <= _MOST_SCORES:
        _log_once(f"attention: one batched product for up to {_SHORT} queries a row")
        implementation = "reference"
    elif implementation is None and jax.default_backend() == "gpu" and not on_tpu():
        reason = why_not_cudnn(q, return_lse)
        _log_once(f"attention: blocked, as cuDNN {reason}" if reason else "attention: cuDNN")
        implementation = "blocked" if reason else "cudnn"
    if query_offset is None and q.shape[1] != S:
        raise ValueError(f"{S} keys for {q.shape[1]} queries need a query_offset")
    if q.shape[2] % K:
        raise ValueError(f"{q.shape[2]} query heads are no multiple of {K} kv heads")
    if shared and length.ndim:
        raise ValueError(f"a prefix that rows share has one length, not {length.shape}")
    reason = _why_not(implementation, query_offset, q, return_lse)
    if reason:
        raise ValueError(f"{implementation=} {reason}")
    offset = jnp.asarray(0 if query_offset is None else query_offset, jnp.int32)

    def local(q, k, v, prefix_k, prefix_v, segment_start, length, offset):
        # The padding in front of a prompt would see nothing: a softmax over no key is not a number.
        segment_start = jnp.minimum(segment_start, offset + jnp.arange(q.shape[1]))
        if implementation == "reference":
            return reference_attention(
                q, k, v, prefix_k.astype(k.dtype), prefix_v.astype(k.dtype), segment_start, length,
                query_offset=offset, scale=scale, heads_first=heads_first,
            )  # fmt: skip
        if heads_first:
            k, v, prefix_k, prefix_v = (x.swapaxes(-2, -3) for x in (k, v, prefix_k, prefix_v))
        rows = _Rows(q, k, v, prefix_k, prefix_v, segment_start, length)
        return _whole_rows(rows, scale, implementation)

    mapped: Any = jax.shard_map(
        local,
        in_specs=(queries, rows, rows, slots, slots, TOKENS_BT, P() if shared else P(DATA), P()),
        out_specs=(queries, P(DATA, None, heads)),
        check_vma=False,  # the custom VJP inside knows nothing of varying axes
    )
    out, lse = mapped(q, k, v, *prefix, segment_start, length, offset)
    return (out, lse) if return_lse else out


def _why_not(
    implementation: str | None, query_offset: Any, q: jax.Array, return_lse: bool
) -> str | None:
    """Why an implementation that was asked for cannot serve; None if it can."""
    if implementation in (None, "reference"):
        return None
    if implementation not in get_args(Implementation):
        return f"is none of {', '.join(get_args(Implementation))}"
    if query_offset is not None:
        return "serves whole rows; query_offset must be None"
    if implementation == "pallas":
        if q.shape[-1] not in _PALLAS_HEADS:
            return f"serves heads of {_PALLAS_HEADS} dimensions, not {q.shape[-1]}"
        if q.dtype not in (jnp.bfloat16, jnp.float32):
            return f"serves bfloat16 and float32, not {q.dtype}"
        if not on_tpu():
            return "needs a TPU; elsewhere 'pallas_interpret' runs the kernels, slowly"
    return why_not_cudnn(q, return_lse) if implementation == "cudnn" else None


@functools.cache
def _log_once(message: str) -> None:
    _log.info(message)


class _Rows(NamedTuple):
    """What an implementation for whole rows takes, on one device; prefix rows R only where each row
    has its own.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    prefix_k: Float[Array, "*R P K H"]
    prefix_v: Float[Array, "*R P K H"]
    segment_start: Int[Array, "B T"]
    length: Int[Array, "*R"]

    def in_one_dtype(self) -> "_Rows":
        """The same with the prefix in the keys' dtype.

        The cast is inside of the VJP, so that a float32 prefix has a float32 gradient, also where
        it is summed over devices.
        """
        dtype = self.k.dtype
        return self._replace(
            prefix_k=self.prefix_k.astype(dtype), prefix_v=self.prefix_v.astype(dtype)
        )


class _Passes(NamedTuple):
    """One pass of every implementation; all take the same arguments."""

    blocked: Callable[..., Any]
    pallas: Callable[..., Any]
    cudnn: Callable[..., Any]

    def choose(self, implementation: str | None, head_dim: int, scale: float) -> Callable[..., Any]:
        """The pass to run; where none was asked for, the platform that is compiled for decides."""
        blocked, pallas, cudnn = (functools.partial(run, scale=scale) for run in self)
        match implementation:
            case "blocked":
                return blocked
            case "cudnn":
                return cudnn
            case "pallas" | "pallas_interpret":
                return functools.partial(pallas, interpret=implementation == "pallas_interpret")
        if head_dim not in _PALLAS_HEADS:
            _log_once(f"attention: blocked, as the TPU kernels have no heads of {head_dim}")
            return blocked
        _log_once(f"attention: {'Pallas kernels' if on_tpu() else 'blocked, as this is no TPU'}")
        return functools.partial(jax.lax.platform_dependent, default=blocked, tpu=pallas)


_Attended = tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]  # values, log-sum-exp in float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _whole_rows(rows: _Rows, scale: float, implementation: str | None) -> _Attended:
    """Attended values and log-sum-exp of whole rows; both are differentiable."""
    return _rows_forward(rows, scale, implementation)[0]


def _rows_forward(
    rows: _Rows, scale: float, implementation: str | None
) -> tuple[_Attended, tuple[_Rows, jax.Array, jax.Array]]:
    passes = _Passes(blocked_forward, pallas_forward, cudnn_forward)
    chosen = passes.choose(implementation, rows.q.shape[-1], scale)
    out, lse = chosen(*rows.in_one_dtype())
    out = checkpoint_name(out, SAVED_NAMES[0])
    lse = checkpoint_name(lse, SAVED_NAMES[1])
    return (out, lse), (rows, out, lse)


def _rows_backward(
    scale: float,
    implementation: str | None,
    saved: tuple[_Rows, jax.Array, jax.Array],
    gradients: _Attended,
) -> tuple[_Rows]:
    """Gradients in the dtypes of the rows; None for what is whole numbers."""
    rows, out, lse = saved
    d_out, d_lse = gradients
    delta = jnp.einsum("BTNH,BTNH->BTN", out, d_out, preferred_element_type=jnp.float32) - d_lse
    passes = _Passes(blocked_backward, pallas_backward, functools.partial(cudnn_backward, out=out))
    chosen = passes.choose(implementation, out.shape[-1], scale)
    found = chosen(*rows.in_one_dtype(), lse, delta, d_out)
    d_rows = [g.astype(x.dtype) for g, x in zip(found, rows[:5], strict=True)]
    no_gradient: Any = None
    return (_Rows(*d_rows, segment_start=no_gradient, length=no_gradient),)


_whole_rows.defvjp(_rows_forward, _rows_backward)
