"""Whole rows with one custom VJP, whose two passes an implementation supplies."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from cartridges_jax.attention.blocked import blocked_backward, blocked_forward
from cartridges_jax.attention.cudnn import cudnn_backward, cudnn_forward
from cartridges_jax.attention.folded import folded_attention
from cartridges_jax.attention.mask import Attended
from cartridges_jax.attention.pallas_tpu import pallas_backward, pallas_forward

# What a rematerialisation policy should save, so that the forward kernel does not run twice.
SAVED_NAMES = ("attention_out", "attention_lse")


class Rows(NamedTuple):
    """What an implementation for whole rows takes, on one device."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    prefix_k: Float[Array, "P K H"]
    prefix_v: Float[Array, "P K H"]
    segment_start: Int[Array, "B T"]
    length: Int[Array, ""]

    def in_one_dtype(self) -> "Rows":
        """The same with the prefix in the keys' dtype.

        The cast is inside of the VJP, so that a float32 prefix has a float32 gradient, also where
        it is summed over devices.
        """
        dtype = self.k.dtype
        return self._replace(
            prefix_k=self.prefix_k.astype(dtype), prefix_v=self.prefix_v.astype(dtype)
        )


def _folded_forward(q, k, v, prefix_k, prefix_v, segment_start, length, *, scale) -> Attended:
    k, v, prefix_k, prefix_v = (x.swapaxes(-2, -3) for x in (k, v, prefix_k, prefix_v))
    return folded_attention(q, k, v, prefix_k, prefix_v, segment_start, length, scale=scale)


def _forward_pass(implementation: str) -> Callable[..., Attended]:
    match implementation:
        case "folded":
            return _folded_forward
        case "cudnn":
            return cudnn_forward
        case "pallas" | "pallas_interpret":
            interpret = implementation == "pallas_interpret"
            return functools.partial(pallas_forward, interpret=interpret)
        case _:
            return blocked_forward


def _backward_pass(implementation: str, out: jax.Array) -> Callable[..., Any]:
    match implementation:
        case "cudnn":
            return functools.partial(cudnn_backward, out=out)
        case "pallas" | "pallas_interpret":
            interpret = implementation == "pallas_interpret"
            return functools.partial(pallas_backward, interpret=interpret)
        case _:
            return blocked_backward


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def whole_rows(rows: Rows, scale: float, implementation: str) -> Attended:
    """Attended values and log-sum-exp of whole rows; both are differentiable."""
    return _forward(rows, scale, implementation)[0]


def _forward(
    rows: Rows, scale: float, implementation: str
) -> tuple[Attended, tuple[Rows, jax.Array, jax.Array]]:
    out, lse = _forward_pass(implementation)(*rows.in_one_dtype(), scale=scale)
    out = checkpoint_name(out, SAVED_NAMES[0])
    lse = checkpoint_name(lse, SAVED_NAMES[1])
    return (out, lse), (rows, out, lse)


def _backward(
    scale: float,
    implementation: str,
    saved: tuple[Rows, jax.Array, jax.Array],
    gradients: Attended,
) -> tuple[Rows]:
    """Gradients in the dtypes of the rows; None for what is whole numbers."""
    rows, out, lse = saved
    d_out, d_lse = gradients
    delta = jnp.einsum("BTNH,BTNH->BTN", out, d_out, preferred_element_type=jnp.float32) - d_lse
    backward = _backward_pass(implementation, out)
    found = backward(*rows.in_one_dtype(), lse, delta, d_out, scale=scale)
    d_rows = [g.astype(x.dtype) for g, x in zip(found, rows[:5], strict=True)]
    no_gradient: Any = None
    return (Rows(*d_rows, segment_start=no_gradient, length=no_gradient),)


whole_rows.defvjp(_forward, _backward)
