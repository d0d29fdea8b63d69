"""Whole rows with one custom VJP, whose two passes an implementation supplies.

Rows may come in groups, each with a prefix of its own: the Pallas kernels take them as they are,
the others a group at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cartridges_jax.attention.blocked import blocked_backward, blocked_forward
from cartridges_jax.attention.cudnn import cudnn_backward, cudnn_forward
from cartridges_jax.attention.folded import folded_attention
from cartridges_jax.attention.mask import Attended, Backward, Rows, groups_first
from cartridges_jax.attention.pallas_tpu import pallas_backward, pallas_forward

# What a rematerialisation policy should save, so that the forward kernel does not run twice.
SAVED_NAMES = ("attention_out", "attention_lse")


def in_groups_of_rows(run: Callable[..., Any], rows: Rows, *of_rows: Any, scale: float) -> Any:
    """What `run` gives for rows that come in groups, a group at a time; also for those that do not.

    It takes `Rows` of one prefix and trees of arrays [B, ...]. What it returns for rows is joined,
    what it returns for the prefix (the last two of five gradients) stacked.
    """
    if rows.prefix_k.ndim == 3:
        return run(rows, *of_rows, scale=scale)
    groups, B = len(rows.prefix_k), len(rows.q)
    split = functools.partial(groups_first, groups=groups)
    each = rows._replace(
        **{name: split(getattr(rows, name)) for name in ("q", "k", "v", "segment_start")}
    )
    found = jax.lax.map(
        lambda group: run(*group, scale=scale), (each, *jax.tree.map(split, of_rows))
    )
    return tuple(x if i >= 3 else x.reshape(B, *x.shape[2:]) for i, x in enumerate(found))


def _passes(implementation: str) -> tuple[Callable[..., Attended], Callable[..., Any]]:
    """The forward and the backward pass."""
    match implementation:
        case "folded":
            passes = folded_attention, blocked_backward
        case "cudnn":
            passes = cudnn_forward, cudnn_backward
        case "cudnn_causal":  # rows of one segment
            both = (cudnn_forward, cudnn_backward)
            passes = tuple(functools.partial(one, is_packed=False) for one in both)
        case "pallas" | "pallas_interpret":
            how = {"interpret": implementation == "pallas_interpret"}
            return (
                functools.partial(pallas_forward, **how),
                functools.partial(pallas_backward, **how),
            )
        case _:
            passes = blocked_forward, blocked_backward
    forward, backward = (functools.partial(in_groups_of_rows, one) for one in passes)
    return forward, backward


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
