"""Matrix products whose factors are rounded, as the training of weights on a CPU uses them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cartridges_jax.models.transformer import initialize, set_product_dtype
from cartridges_jax.sharding import TOKENS_BT, make_mesh, place
from tests.conftest import tiny_config


def gradients(tiny, mesh, product_dtype, tie: bool):
    """Loss and gradients of all weights of a tiny model."""
    config = dataclasses.replace(tiny_config(tiny.tokenizer), tie_embeddings=tie)
    with jax.set_mesh(mesh):
        model = initialize(config, 0)
        set_product_dtype(model, product_dtype)
        rng = np.random.default_rng(0)
        tokens = place(mesh, rng.integers(5, 90, (4, 24)).astype(np.int32), TOKENS_BT)
        at = place(mesh, np.tile(np.arange(24, dtype=np.int32), (4, 1)), TOKENS_BT)

        def loss(model, tokens, at):
            hidden, _ = model(tokens, at, jnp.zeros_like(tokens))
            return jnp.sum(jnp.sin(model.logits(hidden)))

        value, found = jax.jit(jax.value_and_grad(loss))(model, tokens, at)
        return float(value), jax.tree.map(np.asarray, nnx.as_pure(nnx.state(found)))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_products_in_float32_are_the_ordinary_ones(tiny, shape, tie):
    mesh = make_mesh(*shape)
    value, found = gradients(tiny, mesh, jnp.float32, tie)
    expected_value, expected = gradients(tiny, mesh, None, tie)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected
    )


def test_products_in_bfloat16_are_rounded_and_near(tiny):
    mesh = make_mesh(1, 1)
    _, found = gradients(tiny, mesh, jnp.bfloat16, False)
    _, expected = gradients(tiny, mesh, None, False)

    def distance(a, b):
        return np.linalg.norm(a - b) / np.linalg.norm(b)

    far = jax.tree.leaves(jax.tree.map(distance, found, expected))
    assert 1e-4 < max(far) < 5e-2
