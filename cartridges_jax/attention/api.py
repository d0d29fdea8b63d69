"""The one attention function of the model: training, scoring, prefill and cached decode.

It chooses an implementation, and runs it under `shard_map` so that a kernel only ever sees the
rows and heads of its own device, also where several devices share the queries of one kv head. Whole
rows have one custom VJP, whose two passes an implementation supplies; the gradient of a prefix that
rows share is summed over the "data" axis by the transpose of the map, in the prefix's own dtype:
pass trainable slots in float32.
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
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT, head_axis, on_tpu, query_axis

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
    """Attends from each query to a prefix and to its own segment, under a mesh of `sharding`.

    Query t of row b sees all live slots of the prefix and the row's keys from
    `segment_start[b, t]` up to key `query_offset + t`, its own, which it always sees; one softmax
    runs over both, in float32.

    Args:
      q: queries, rotated.
      k: the row's own keys [B, S, K, H], rotated; N is a multiple of K, heads are grouped, never
        repeated.
      v: the row's own values, likewise.
      segment_start: first key index that each query may see; below 0 is 0.
      scale: factor on the scores (`H ** -0.5` in all supported models).
      prefix: keys and values of the prefix, [P, K, H] shared by all rows or [B, P, K, H] of each;
        None for none. They are read in the dtype of `k`; their gradient has their own.
      prefix_length: number of live prefix slots, the rest being padding; [B] where each row has
        its own prefix; None for all, and so is what exceeds them.
      query_offset: key index of query 0, for a cache with S > T; None means S == T and 0.
      heads_first: keys and values are [B, K, S, H], those of the prefix [K, P, H] or [B, K, P, H]:
        the layout to keep a cache in, as a step then reads it in order.
      implementation: None picks one: for whole rows Pallas kernels on TPU, "cudnn" on a GPU where
        it serves the case, and "blocked" elsewhere; for a few queries or a cache "reference", in
        pieces of the queries where all scores would be more than 1 GiB. "pallas_interpret" runs
        the kernels on a CPU.
      return_lse: also returns the log-sum-exp of each query's scores, differentiable.

    Returns:
      The attended values [B, T, N, H] in the dtype of `q`; with `return_lse` a pair, the second
      [B, T, N] float32.

    Raises:
      ValueError: if the implementation asked for is none or cannot serve the case, or shapes do not
        fit each other.
    """
    T, H = q.shape[1], q.shape[3]
    K = k.shape[1 if heads_first else 2]
    heads, query_heads = head_axis(K), query_axis(q.shape[2], K)
    shared = prefix is None or prefix[0].ndim == 3
    queries = P(DATA, None, query_heads, None)
    rows = P(DATA, heads, None, None) if heads_first else P(DATA, None, heads, None)
    slots = P(*rows[1:]) if shared else rows
    if prefix is None:
        none = (K, 0, H) if heads_first else (0, K, H)
        empty = jax.sharding.reshard(jnp.zeros(none, k.dtype), slots)
        prefix, prefix_length = (empty, empty), 0
    num_slots = prefix[0].shape[-2 if heads_first else -3]
    length = jnp.minimum(num_slots if prefix_length is None else prefix_length, num_slots)
    length = length.astype(jnp.int32)
    if not shared:
        length = jax.sharding.reshard(jnp.broadcast_to(length, q.shape[:1]), P(DATA))
    S = k.shape[2 if heads_first else 1]
    scores = q.size // H * (S + num_slots)
    automatic = implementation is None
    if implementation is None and query_offset is not None:
        _log_once("attention: batched products behind a cache")
        implementation = "reference"
    elif implementation is None and T <= _SHORT and scores <= _MOST_SCORES:
        _log_once(f"attention: one batched product for up to {_SHORT} queries a row")
        implementation = "reference"
    elif implementation is None and jax.default_backend() == "gpu" and not on_tpu():
        reason = why_not_cudnn(q, return_lse)
        _log_once(f"attention: blocked, as cuDNN {reason}" if reason else "attention: cuDNN")
        implementation = "blocked" if reason else "cudnn"
    if query_offset is None and T != S:
        raise ValueError(f"{S} keys for {T} queries need a query_offset")
    if q.shape[2] % K:
        raise ValueError(f"{q.shape[2]} query heads are no multiple of {K} kv heads")
    if shared and length.ndim:
        raise ValueError(f"a prefix that rows share has one length, not {length.shape}")
    reason = _why_not(implementation, query_offset, q, return_lse)
    if reason:
        raise ValueError(f"{implementation=} {reason}")
    offset = jnp.asarray(0 if query_offset is None else query_offset, jnp.int32)

    def local(q, k, v, prefix_k, prefix_v, segment_start, length, offset):
        if query_heads != heads:  # this device's queries are of one kv head
            k, v, prefix_k, prefix_v = (
                _own_head(x, -3 if heads_first else -2) for x in (k, v, prefix_k, prefix_v)
            )
        # The padding in front of a prompt would see nothing: a softmax over no key is not a number.
        segment_start = jnp.clip(segment_start, 0, offset + jnp.arange(T))
        if implementation == "reference":

            def run(q, segment_start, offset):
                return reference_attention(
                    q, k, v, prefix_k.astype(k.dtype), prefix_v.astype(k.dtype), segment_start,
                    length, query_offset=offset, scale=scale, heads_first=heads_first,
                )  # fmt: skip

            of_query = q.size // (T * H) * (S + num_slots)
            most = max(_MOST_SCORES // of_query, 1) if automatic else T
            return _in_pieces(run, most, q, segment_start, offset)
        if heads_first:
            k, v, prefix_k, prefix_v = (x.swapaxes(-2, -3) for x in (k, v, prefix_k, prefix_v))
        rows = _Rows(q, k, v, prefix_k, prefix_v, segment_start, length)
        return _whole_rows(rows, scale, implementation)

    mapped: Any = jax.shard_map(
        local,
        in_specs=(queries, rows, rows, slots, slots, TOKENS_BT, P() if shared else P(DATA), P()),
        out_specs=(queries, P(DATA, None, query_heads)),
        check_vma=False,  # the custom VJP inside knows nothing of varying axes
    )
    out, lse = mapped(q, k, v, *prefix, segment_start, length, offset)
    return (out, lse) if return_lse else out


def _own_head(x: jax.Array, axis: int) -> jax.Array:
    """Of all kv heads, along `axis`, the one whose queries this device has."""
    index = jax.lax.axis_index(MODEL) * x.shape[axis] // jax.lax.axis_size(MODEL)
    return jax.lax.dynamic_slice_in_dim(x, index, 1, axis)


def _in_pieces(
    run: Callable[..., tuple[jax.Array, jax.Array]],
    most: int,
    q: Float[Array, "B T N H"],
    segment_start: Int[Array, "B T"],
    offset: Int[Array, ""],
) -> tuple[jax.Array, jax.Array]:
    """What `run` makes of queries, of their first keys and of the key index of query 0.

    It gets at most `most` queries of a row at a time; the last piece is filled up with queries that
    nobody reads.
    """
    T = q.shape[1]
    if most >= T:
        return run(q, segment_start, offset)
    count = -(-T // most)
    size = -(-T // count)

    def cut(x: jax.Array) -> jax.Array:
        extra = [(0, 0), (0, count * size - T), *((0, 0) for _ in x.shape[2:])]
        return jnp.pad(x, extra).reshape(x.shape[0], count, size, *x.shape[2:]).swapaxes(0, 1)

    offsets = offset + size * jnp.arange(count)
    found = jax.lax.map(lambda piece: run(*piece), (cut(q), cut(segment_start), offsets))

    def joined(x: jax.Array) -> jax.Array:
        whole = x.swapaxes(0, 1)
        return whole.reshape(whole.shape[0], count * size, *whole.shape[3:])[:, :T]

    out, lse = (joined(x) for x in found)
    return out, lse


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
        elsewhere = "needs a TPU; elsewhere 'pallas_interpret' runs the kernels, slowly"
        return _why_not_mosaic(q) or (None if on_tpu() else elsewhere)
    return why_not_cudnn(q, return_lse) if implementation == "cudnn" else None


def _why_not_mosaic(q: jax.Array) -> str | None:
    """Why the kernels cannot be compiled for these queries; None if they can."""
    if q.shape[-1] not in _PALLAS_HEADS:
        return f"serves heads of {_PALLAS_HEADS} dimensions, not {q.shape[-1]}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"serves bfloat16 and float32, not {q.dtype}"
    return None


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

    def choose(self, implementation: str | None, q: jax.Array, scale: float) -> Callable[..., Any]:
        """The pass to run; where none was asked for, the platform that is compiled for decides."""
        blocked, pallas, cudnn = (functools.partial(run, scale=scale) for run in self)
        match implementation:
            case "blocked":
                return blocked
            case "cudnn":
                return cudnn
            case "pallas" | "pallas_interpret":
                return functools.partial(pallas, interpret=implementation == "pallas_interpret")
        reason = _why_not_mosaic(q)
        if not on_tpu():
            _log_once("attention: blocked, as this is no TPU")
        elif reason:
            _log_once(f"attention: blocked, as the Pallas kernel {reason}")
        else:
            _log_once("attention: Pallas kernels")
        if reason:
            return blocked
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
    chosen = passes.choose(implementation, rows.q, scale)
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
    chosen = passes.choose(implementation, rows.q, scale)
    found = chosen(*rows.in_one_dtype(), lse, delta, d_out)
    d_rows = [g.astype(x.dtype) for g, x in zip(found, rows[:5], strict=True)]
    no_gradient: Any = None
    return (_Rows(*d_rows, segment_start=no_gradient, length=no_gradient),)


_whole_rows.defvjp(_rows_forward, _rows_backward)
