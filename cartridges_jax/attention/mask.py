"""Who sees whom in whole rows, packed or not, and what the implementations share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEG_INF = -1e30  # finite, so that a padding row without any visible key is not NaN


class Mask(NamedTuple):
    """What each query sees: the prefix's live slots, and its row's keys from a first one to itself.

    Query t of row b sees the first `prefix_length` slots of the prefix, and keys
    `segment_start[b, t]` up to its own, which it always sees.
    """

    segment_start: Int[Array, "B T"] | None  # below 0 is 0; None: each row is one segment
    # None, and more than there are: all slots. Where rows come in groups, one for each group.
    prefix_length: Int[Array, "*C"] | int | None = None


def visible_keys(segment_start: Int[Array, "B T"]) -> jax.Array:
    """Returns the boolean mask [B, T, T] of the row's own keys that each query sees."""
    index = jnp.arange(segment_start.shape[1])
    causal = index[None, None, :] <= index[None, :, None]
    return causal & (index[None, None, :] >= segment_start[:, :, None])


class Rows(NamedTuple):
    """What an implementation takes, on one device; `attention.api` says what each is.

    Axes stand in this order whatever the order in memory: the compiler merges a turned view into
    the product that reads it. A prefix may be float32 beside keys in half precision. Whole rows may
    come in C groups, one after the other, with a prefix [C, P, K, H] and a length [C] for each.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    prefix_k: Float[Array, "*C P K H"]
    prefix_v: Float[Array, "*C P K H"]
    segment_start: Int[Array, "B T"]
    prefix_length: Int[Array, "*C"]

    def in_one_dtype(self) -> "Rows":
        """The same with the prefix in the keys' dtype."""
        dtype = self.k.dtype
        return self._replace(
            prefix_k=self.prefix_k.astype(dtype), prefix_v=self.prefix_v.astype(dtype)
        )


def groups_first(x: jax.Array, groups: int) -> jax.Array:
    """What belongs to rows, [B, ...], as [groups, rows of a group, ...]."""
    return x.reshape(groups, -1, *x.shape[1:])


class Backward(NamedTuple):
    """What the backward pass of whole rows takes beside them.

    The pass hands out the gradients of q, k and v in their shapes, and those of the prefix, which
    are sums over rows and so float32 where an implementation can sum so.
    """

    out: Float[Array, "B T N H"]  # the attended values
    lse: Float[Array, "B T N"]
    delta: Float[Array, "B T N"]  # sum over H of out * d_out, minus the gradient of lse
    d_out: Float[Array, "B T N H"]  # gradient of the attended values


# The attended values in the dtype of the queries; the log-sum-exp of their scores in float32.
Attended = tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]


def head_product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each, head by head on the first, with float32 sums."""
    dimensions = (((axes[0],), (axes[1],)), ((0,), (0,)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
