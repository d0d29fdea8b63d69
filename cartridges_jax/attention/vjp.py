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


def _passes(implementation: str) -> tuple[Callable[..., Attended], Callable[..., Any]]:
    """The forward and the backward pass."""
    match implementation:
        case "folded":
            return folded_attention, blocked_backward
        case "cudnn":
            return cudnn_forward, cudnn_backward
        case "pallas" | "pallas_interpret":
            how = {"interpret": implementation == "pallas_interpret"}
            passes = pallas_forward, pallas_backward
            return functools.partial(passes[0], **how), functools.partial(passes[1], **how)
        case _:
            return blocked_forward, blocked_backward


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def whole_rows(rows: Rows, scale: float, implementation: str) -> Attended:
    """Attended values and log-sum-exp of whole rows; both are differentiable."""
    return _forward(rows, scale, implementation)[0]


def _forward(
    rows: Rows, scale: float, implementation: str
) -> tuple[Attended, tuple[Rows, jax.Array, jax.Array]]:
    # The prefix is cast in here, so that a float32 one has a float32 gradient, also where it is
    # summed over devices.
    out, lse = _passes(implementation)[0](rows.in_one_dtype(), scale=scale)
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
    found = _passes(implementation)[1](rows.in_one_dtype(), back, scale=scale)
    d_rows = [g.astype(x.dtype) for g, x in zip(found, rows[:5], strict=True)]
    return (Rows(*d_rows, *(None,) * len(rows[5:])),)


whole_rows.defvjp(_forward, _backward)
