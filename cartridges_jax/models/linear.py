"""The matrices of the model, each described once: by the einsum of its input and its weight.

From an einsum's letters come a weight's shape, sharding, bias and the scales of int8. Letters are
those of `ModelConfig.sizes`; a mesh axis for each is told by `sharding.weight_axes`. A matrix that
is split over "data" is gathered where it is used. A product's factors have the dtype of the weight,
its result that of the input: on a CPU weights may be bfloat16 and everything else float32.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.models.config import ModelConfig
from cartridges_jax.sharding import (
    ACT_BTD,
    DATA,
    MODEL,
    TOKENS_BT,
    gathered,
    on_cpu,
    without_data,
)

INIT_SCALE = 0.02  # standard deviation of fresh weights, as in Llama
PRODUCT = "product"  # what a backward pass may keep of a `Linear`


class Linear(nnx.Module):
    """The same linear map of every block: weights stacked on L, used one layer at a time.

    It is described by the einsum of its input and one layer's weight. The weight may be int8 with
    a float32 `scale` for each output (see `int8.py`).
    """

    def __init__(
        self,
        equation: str,
        config: ModelConfig,
        *,
        places: dict[str, str | None],
        bias: bool,
        rngs: nnx.Rngs,
        dtype,
        bias_dtype,
    ):
        """Makes fresh weights.

        Args:
          equation: such as "BTD,DNH->BTNH", in the letters of `ModelConfig.sizes`.
          config: the sizes.
          places: the mesh axis of each letter.
          bias: whether the outputs have one.
          rngs: of the weights.
          dtype: of the weights.
          bias_dtype: of the bias.
        """
        _, self.axes, result = re.split(",|->", equation)
        self.equation = equation
        self.output_axes = "".join(letter for letter in self.axes if letter in result)
        sizes = config.sizes
        # A contraction over an axis that is still sharded must say where its result lives.
        sharded_sum = any(places[a] == MODEL for a in self.axes if a not in result)
        self.out_sharding = ACT_BTD if sharded_sum else None
        shape = [config.num_layers, *(sizes[a] for a in self.axes)]
        weight = jax.random.normal(rngs.params(), shape, dtype) * INIT_SCALE
        self.weight = nnx.Param(weight, spec=P(None, *(places[a] for a in self.axes)))
        self.output_spec = without_data(P(None, *(places[a] for a in self.output_axes)))
        outputs = [config.num_layers, *(sizes[a] for a in self.output_axes)]
        fresh = nnx.Param(jnp.zeros(outputs, bias_dtype), spec=self.output_spec)
        self.bias = fresh if bias else None
        self.scale: nnx.Param | None = nnx.data(None)  # may be set by `int8.quantize`

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = gathered(self.weight[...])
        if self.scale is None:
            y = product(self.equation, self.out_sharding, x, weight)
        else:
            y = _dot(self.equation, self.out_sharding, x, weight.astype(x.dtype), jnp.float32)
            y = (y * gathered(self.scale[...])).astype(x.dtype)
        y = checkpoint_name(y, PRODUCT)
        return y if self.bias is None else y + self.bias[...]


def product(equation: str, out_sharding: P | None, x: jax.Array, weight: jax.Array) -> jax.Array:
    """The einsum of `x` and a weight, in the dtype of `x`; differentiable with respect to both.

    Where the weight has another dtype the factors have the weight's, also in the gradient of `x`;
    then the weight is frozen and its gradient comes out as zero.
    """
    if weight.dtype == x.dtype:
        return _dot(equation, out_sharding, x, weight, x.dtype)
    return _mixed_product(equation, out_sharding, jax.typeof(x).sharding.spec, x, weight)


def _dot(
    equation: str, out_sharding: P | None, x: jax.Array, weight: jax.Array, dtype: Any
) -> jax.Array:
    """The einsum as a product of matrices; sums over several axes go in the weight's order.

    `jnp.einsum` takes these by name, and would copy weights whose axes are not sorted.
    """
    inputs, axes, result = re.split(",|->", equation)
    summed = [axis for axis in axes if axis in inputs]
    contracting = (tuple(map(inputs.index, summed)), tuple(map(axes.index, summed)))
    kept = [axis for axis in inputs + axes if axis not in summed]
    assert "".join(kept) == result, equation
    # XLA's CPU compiler makes float32 of all of a bfloat16 matrix for one row, but not for two.
    one_row = x.size == math.prod(x.shape[i] for i in contracting[0])
    alone = one_row and weight.dtype == jnp.bfloat16 and on_cpu()
    if alone:
        x = jnp.concatenate([x, x])
    y = jax.lax.dot_general(
        x, weight, (contracting, ((), ())), preferred_element_type=dtype, out_sharding=out_sharding
    )
    return y[:1] if alone else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _mixed_product(
    equation: str, out_sharding: P | None, x_spec: P | None, x: jax.Array, weight: jax.Array
) -> jax.Array:
    """An einsum of factors in the dtype of `weight`, summed in that of `x`, which lies as told."""
    del x_spec
    return _dot(equation, out_sharding, x.astype(weight.dtype), weight, x.dtype)


def _mixed_forward(equation, out_sharding, x_spec, x, weight):
    return _mixed_product(equation, out_sharding, x_spec, x, weight), weight


def _mixed_backward(equation, out_sharding, x_spec, weight, g):
    inputs, axes, result = re.split(",|->", equation)
    of_x = f"{result},{axes}->{inputs}"
    return _mixed_product(of_x, x_spec, out_sharding, g, weight), jnp.zeros_like(weight)


_mixed_product.defvjp(_mixed_forward, _mixed_backward)


class Embedding(nnx.Module):
    """A [V, D] matrix: rows looked up by token, or the LM head. It may be int8 as `Linear` is."""

    def __init__(
        self, config: ModelConfig, *, places: dict[str, str | None], rngs: nnx.Rngs, dtype
    ):
        shape = (config.vocab_size, config.hidden_size)
        weight = jax.random.normal(rngs.params(), shape, dtype) * INIT_SCALE
        self.weight = nnx.Param(weight, spec=P(places["V"], places["D"]))
        self.scale: nnx.Param | None = nnx.data(None)
        self.axes, self.output_axes, self.output_spec = "VD", "V", P(MODEL)

    def __call__(self, token_ids: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T D"]:
        weight = self.weight[...]
        # XLA's CPU compiler would make float32 of all of it.
        as_integers = weight.dtype == jnp.bfloat16 and on_cpu()
        if as_integers:
            weight = jax.lax.bitcast_convert_type(weight, jnp.uint16)
        if DATA in jax.typeof(weight).sharding.spec:
            # All rows' words are looked up in each device's part of D, and then change places:
            # so the matrix is never whole.
            ids = jax.sharding.reshard(token_ids, P(None, None))
            x = weight.at[ids].get(out_sharding=P(None, None, DATA))
            x = jax.sharding.reshard(x, ACT_BTD)
        else:
            x = weight.at[token_ids].get(out_sharding=ACT_BTD)
        if self.scale is None:
            x = jax.lax.bitcast_convert_type(x, jnp.bfloat16) if as_integers else x
            return x.astype(dtype)
        scale = self.scale[...].at[token_ids].get(out_sharding=TOKENS_BT)
        return (x.astype(jnp.float32) * scale[..., None]).astype(dtype)

    @property
    def head(self) -> "Head":
        """The matrix as an LM head."""
        scale = None if self.scale is None else self.scale[...]
        return Head(gathered(self.weight[...]), scale)


class Head(NamedTuple):
    """The weight of the LM head [V, D], and the scale [V] of one that is int8."""

    weight: jax.Array
    scale: jax.Array | None

    @property
    def specs(self) -> "Head":
        """Where its parts are: words over "model"."""
        weight: Any = P(MODEL, None)
        scale: Any = None if self.scale is None else P(MODEL)
        return Head(weight, scale)

    def logits(
        self, hidden: Float[Array, "*A D"], out_sharding: P | None = None
    ) -> Float[Array, "*A V"]:
        """Float32 logits of the words of this head, or of a device's part of it."""
        weight, scale = self
        weight = weight.astype(hidden.dtype) if scale is not None else weight
        lead = "BT"[: hidden.ndim - 1]
        hidden = hidden.astype(weight.dtype)
        out = _dot(f"{lead}D,VD->{lead}V", out_sharding, hidden, weight, jnp.float32)
        return out if scale is None else out * scale
