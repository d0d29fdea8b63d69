"""The hand-written gradients of pretraining against those of the plain forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from cartridges_jax.models.transformer import initialize
from cartridges_jax.sharding import DATA, make_mesh
from cartridges_jax.sharding import place as put
from experiments.embedded_world.pretraining import POINTER_HEADS, cross_entropy, mean_gradient, pick
from tests.conftest import tiny_config

B, T, M, D, V = 2, 12, 5, 3, 7


def targets_of_rows(rng):
    """Target positions [B, M] in order, and the way back [B, T], M for none."""
    index = np.sort([rng.permutation(T - 1)[:M] for _ in range(B)], axis=1)
    place = np.full((B, T), M)
    for row in range(B):
        place[row, index[row]] = np.arange(M)
    return index, place


def test_pick_has_the_gradient_of_a_gather(rng):
    index, place = targets_of_rows(rng)
    hidden, weight = rng.normal(size=(B, T, D)), rng.normal(size=(B, M, D))

    def plain(x):
        return jnp.sum(jnp.take_along_axis(x, jnp.asarray(index)[..., None], axis=1) * weight)

    got = jax.grad(lambda x: jnp.sum(pick(x, jnp.asarray(index), jnp.asarray(place)) * weight))
    x = jnp.asarray(hidden, jnp.float32)
    np.testing.assert_allclose(got(x), jax.grad(plain)(x), rtol=1e-6)


def test_cross_entropy_equals_that_of_optax(rng):
    logits = jnp.asarray(rng.normal(size=(B, M, V)), jnp.float32)
    targets, weight = rng.integers(0, V, (B, M)), rng.normal(size=(B, M))
    plain = optax.softmax_cross_entropy_with_integer_labels
    want, wanted = jax.value_and_grad(lambda x: jnp.sum(plain(x, targets) * weight))(logits)
    ours = jax.value_and_grad(lambda x: jnp.sum(cross_entropy(x, jnp.asarray(targets)) * weight))
    got, gradient = ours(logits)
    assert got == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_pieces_have_the_gradient_of_the_whole_batch(trained, rng):
    """Two pieces with different numbers of targets and pointers: means are over both together."""
    config = dataclasses.replace(tiny_config(trained.tokenizer), num_layers=5, num_kv_heads=8)
    groups = len(POINTER_HEADS)
    index, place = zip(*(targets_of_rows(rng) for _ in range(2)), strict=True)
    queries = rng.integers(2, T, (2, B, groups, 2))
    queries[0, :, :, 1] = -1
    batch = {
        "token_ids": rng.integers(0, config.vocab_size, (2, B, T)),
        "index": np.stack(index),
        "place": np.stack(place),
        "target": rng.integers(0, config.vocab_size, (2, B, M)),
        "weight": rng.choice([0.0, 0.1, 1.0], (2, B, M)).astype(np.float32),
        "queries": queries.astype(np.int32),
        "keys": np.where(queries >= 0, queries - 1, -1)[..., None].astype(np.int32),
    }
    as_one = {name: x.reshape(1, 2 * B, *x.shape[2:]) for name, x in batch.items()}
    mesh = make_mesh(2, 1)
    batch, as_one = (
        {name: put(mesh, x, P(None, DATA)) for name, x in rows.items()} for rows in (batch, as_one)
    )
    with jax.set_mesh(mesh):
        model = initialize(config, seed=0)
        got, sums = jax.jit(mean_gradient)(model, batch)
        want, wanted = jax.jit(mean_gradient)(model, as_one)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    for name, value in wanted.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5)
    assert float(jnp.abs(nnx.to_flat_state(got)[0][1][...]).max()) > 0
