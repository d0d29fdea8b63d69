"""The matrices of the model, each described once: by the einsum of its input and its weight.

From an einsum's letters come a weight's shape, sharding, bias and the scales of int8. Letters are
those of `ModelConfig.sizes`; a mesh axis for each is told by `_axis_places`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.models.config import ModelConfig
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, TOKENS_BT, head_axis, query_axis

INIT_SCALE = 0.02  # standard deviation of fresh weights, as in Llama


class Linear(nnx.Module):
    """The same linear map of every block: weights stacked on L, used one layer at a time.

    It is described by the einsum of its input and one layer's weight. The weight may be int8 with
    a float32 `scale` for each output (see `int8.py`).
    """

    def __init__(self, equation: str, config: ModelConfig, *, bias: bool, rngs: nnx.Rngs, dtype):
        """Makes fresh weights.

        Args:
          equation: such as "BTD,DNH->BTNH", in the letters of `ModelConfig.sizes`.
          config: the sizes.
          bias: whether the outputs have one.
          rngs: of the weights.
          dtype: of weights and bias.
        """
        _, self.axes, result = re.split(",|->", equation)
        self.equation = equation
        self.output_axes = "".join(letter for letter in self.axes if letter in result)
        sizes, places = config.sizes, _axis_places(config)
        # A contraction over a sharded axis must say where its result lives.
        sharded_sum = any(places[a] for a in self.axes if a not in result)
        self.out_sharding = ACT_BTD if sharded_sum else None
        shape = [config.num_layers, *(sizes[a] for a in self.axes)]
        weight = jax.random.normal(rngs.params(), shape, dtype) * INIT_SCALE
        self.weight = nnx.Param(weight, spec=P(None, *(places[a] for a in self.axes)))
        self.output_spec = P(None, *(places[a] for a in self.output_axes))
        outputs = [config.num_layers, *(sizes[a] for a in self.output_axes)]
        fresh = nnx.Param(jnp.zeros(outputs, dtype), spec=self.output_spec)
        self.bias = fresh if bias else None
        self.scale: nnx.Param | None = nnx.data(None)  # may be set by `int8.quantize`

    def __call__(self, x: jax.Array) -> jax.Array:
        y = scaled_einsum(self.equation, x, self.weight, self.scale, self.out_sharding, x.dtype)
        return y if self.bias is None else y + self.bias[...]


def scaled_einsum(
    equation: str,
    x: jax.Array,
    weight: nnx.Param,
    scale: nnx.Param | None,
    out_sharding: P | None,
    dtype: Any,
) -> jax.Array:
    """The einsum of `x` and a weight; an int8 weight's outputs are scaled in float32."""
    if scale is None:
        return jnp.einsum(
            equation, x, weight[...], preferred_element_type=dtype, out_sharding=out_sharding
        )
    y = jnp.einsum(
        equation,
        x,
        weight[...].astype(x.dtype),
        preferred_element_type=jnp.float32,
        out_sharding=out_sharding,
    )
    return (y * scale[...]).astype(dtype)


def _axis_places(config: ModelConfig) -> dict[str, str | None]:
    """The mesh axis of each axis of a weight, under the current mesh."""
    queries = query_axis(config.num_heads, config.num_kv_heads)
    return {
        "N": queries,
        "K": head_axis(config.num_kv_heads),
        "F": MODEL,
        "V": MODEL,
        "D": None,
        "H": None,
    }


class Embedding(nnx.Module):
    """A [V, D] matrix: rows looked up by token, or the LM head. It may be int8 as `Linear` is."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        shape = (config.vocab_size, config.hidden_size)
        weight = jax.random.normal(rngs.params(), shape, dtype) * INIT_SCALE
        self.weight = nnx.Param(weight, spec=P(MODEL, None))
        self.scale: nnx.Param | None = nnx.data(None)
        self.axes, self.output_axes, self.output_spec = "VD", "V", P(MODEL)

    def __call__(self, token_ids: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T D"]:
        x = self.weight[...].at[token_ids].get(out_sharding=ACT_BTD)
        if self.scale is None:
            return x
        scale = self.scale[...].at[token_ids].get(out_sharding=TOKENS_BT)
        return (x.astype(jnp.float32) * scale[..., None]).astype(dtype)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        where = P(DATA, None, MODEL)
        return scaled_einsum("BTD,VD->BTV", hidden, self.weight, self.scale, where, jnp.float32)
