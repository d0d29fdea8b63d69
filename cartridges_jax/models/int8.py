"""Weight-only int8 for the frozen base: half the memory of bfloat16, activations as they were.

Every output channel of a matrix has one float32 scale, its largest weight over 127; the embedding
has one for each token. Norms and biases keep their dtype. Products run on weights that were cast
back (exact: an int8 is a bfloat16), and the scale is applied to the float32 result.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cartridges_jax.models.linear import Embedding, Linear
from cartridges_jax.models.transformer import Transformer

LARGEST = 127


@functools.partial(jax.jit, static_argnames="axes", donate_argnums=0)
def _round(weight: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    w = weight.astype(jnp.float32)
    largest = jnp.max(jnp.abs(w), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    return jnp.round(w / scale).astype(jnp.int8), jnp.squeeze(scale, axes)


def quantize(matrix: Linear | Embedding) -> None:
    """Replaces a matrix's weight by int8 and a scale, in place; call it under the model's mesh."""
    spec = matrix.weight.get_metadata()["spec"]
    lead = matrix.weight[...].ndim - len(matrix.axes)  # 1 for the blocks' leading L
    summed = tuple(lead + i for i, axis in enumerate(matrix.axes) if axis not in matrix.output_axes)
    rounded, scale = _round(matrix.weight[...], summed)
    matrix.weight = nnx.Param(rounded, spec=spec)
    matrix.scale = nnx.Param(scale, spec=matrix.output_spec)


def quantize_all(model: Transformer) -> Transformer:
    """Quantizes every matrix of a model in place, and returns it."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear | Embedding):
            quantize(module)
    return model
