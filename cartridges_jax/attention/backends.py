"""Which implementation serves a call, and why not another one: the one place that decides.

| implementation | what it serves |
|---|---|
| reference | everything, slowly; the specification |
| folded | few queries a row, and many short rows behind a longer prefix off TPU |
| pallas | whole rows on TPU |
| cudnn | whole rows in half precision on a GPU |
| blocked | whole rows anywhere else |
"""

import functools
import logging
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from cartridges_jax.attention.cudnn import why_not_cudnn
from cartridges_jax.sharding import on_tpu

Implementation = Literal["reference", "folded", "blocked", "pallas", "pallas_interpret", "cudnn"]

_BY_NAME: dict[str, Implementation] = {name: name for name in get_args(Implementation)}
FEW_QUERIES = 8  # of a row: one batched product is as fast as kernels
_PALLAS_HEADS = (64, 128, 256)
_log = logging.getLogger(__name__)


def choose(
    asked: str | None,
    q: jax.Array,
    num_slots: int,
    return_lse: bool,
    is_packed: bool = True,
) -> Implementation:
    """Returns the implementation to run; the choice is logged once with its reason.

    Args:
      asked: what the caller wants; None for the fastest that serves.
      q: queries [B, T, N, H] of all devices.
      num_slots: of the prefix.
      return_lse: whether the log-sum-exp is wanted too.
      is_packed: whether rows hold segments that must not see each other.

    Raises:
      ValueError: if what is asked for does not exist or cannot serve.
    """
    if asked is not None:
        reason = _why_not(asked, q, return_lse, is_packed)
        if reason:
            raise ValueError(f"implementation={asked!r} {reason}")
        return _BY_NAME[asked]
    if q.shape[1] <= FEW_QUERIES:
        return _because("folded", "few queries a row")
    if on_tpu():
        reason = _why_not_mosaic(q)
        if reason is None:
            return _because("pallas", "whole rows on TPU")
        return _because("blocked", f"the Pallas kernel {reason}")
    if jax.default_backend() == "gpu":
        reason = why_not_cudnn(q, return_lse, is_packed)
        if reason is None:
            return _because("cudnn", "whole rows on a GPU")
        return _because("blocked", f"cuDNN {reason}")
    if num_slots >= q.shape[1] and q.shape[0] > 1:
        return _because("folded", "short rows behind a longer prefix")
    return _because("blocked", "whole rows, and this is no TPU")


def _because(chosen: Implementation, reason: str) -> Implementation:
    _log_once(f"attention: {chosen} ({reason})")
    return chosen


@functools.cache
def _log_once(message: str) -> None:
    _log.info(message)


def _why_not(asked: str, q: jax.Array, return_lse: bool, is_packed: bool) -> str | None:
    """Why an implementation that was asked for cannot serve; None if it can."""
    if asked not in _BY_NAME:
        return f"is none of {', '.join(_BY_NAME)}"
    if asked in ("reference", "folded"):
        return None
    if asked == "pallas":
        elsewhere = "needs a TPU; elsewhere 'pallas_interpret' runs the kernels, slowly"
        return _why_not_mosaic(q) or (None if on_tpu() else elsewhere)
    return why_not_cudnn(q, return_lse, is_packed) if asked == "cudnn" else None


def _why_not_mosaic(q: Any) -> str | None:
    """Why the kernels cannot be compiled for these queries; None if they can."""
    if q.shape[-1] not in _PALLAS_HEADS:
        return f"serves heads of {_PALLAS_HEADS} dimensions, not {q.shape[-1]}"
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"serves bfloat16 and float32, not {q.dtype}"
    return None
