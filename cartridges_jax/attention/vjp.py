"""Whole rows with one custom VJP, whose two passes an implementation supplies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cartridges_jax.attention.blocked import blocked_backward, blocked_forward
from cartridges_jax.attention.cudnn import cudnn_backward, cudnn_forward
from cartridges_jax.attention.folded import folded_attention
from cartridges_jax.attention.mask import Attended, Backward, Rows
from cartridges_jax.attention.pallas_tpu import pallas_backward, pallas_forward

# What a rematerialisation policy should save, so that the forward kernel does not run twice.
SAVED_NAMES = ("attention_out", "attention_lse")


def _forward_pass(implementation: str) -> Callable[..., Attended]:
    match implementation:
        case "folded":
            return folded_attention
        case "cudnn":
            return cudnn_forward
        case "pallas" | "pallas_interpret":
            interpret = implementation == "pallas_interpret"
            return functools.partial(pallas_forward, interpret=interpret)
        case _:
            return blocked_forward


def _backward_pass(implementation: str) -> Callable[..., Any]:
    match implementation:
        case "cudnn":
            return cudnn_backward
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
    # The prefix is cast in here, so that a float32 one has a float32 gradient, also where it is
    # summed over devices.
    out, lse = _forward_pass(implementation)(rows.in_one_dtype(), scale=scale)
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
    back = Backward(out, lse, delta, d_out)
    found = _backward_pass(implementation)(rows.in_one_dtype(), back, scale=scale)
    d_rows = [g.astype(x.dtype) for g, x in zip(found, rows[:5], strict=True)]
    return (Rows(*d_rows, *(None,) * len(rows[5:])),)  # none for whole numbers


whole_rows.defvjp(_forward, _backward)
