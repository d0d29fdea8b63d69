"""bfloat16 matrices beside float32 everything else, and layers that are taken one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cartridges_jax import load_model
from cartridges_jax.engine import engine
from cartridges_jax.models.linear import product
from cartridges_jax.sharding import TOKENS_BT, make_mesh, place
from tests.conftest import MESHES, TEST_MODEL

IDS = np.random.default_rng(0).integers(3, 3000, (4, 40))


@pytest.fixture(scope="module", params=[(1, 1), (2, 4)], ids=str)
def mixed(request):
    return load_model(TEST_MODEL, dtype=jnp.bfloat16, mesh=make_mesh(*request.param))


def rounded(model):
    """The same weights in float32, so that only the products' factors differ."""
    whole = load_model(TEST_MODEL, dtype=jnp.float32, mesh=model.mesh)
    for path in ("embedding", *(f"blocks.{n}" for n in ("q", "k", "v", "o", "gate", "up", "down"))):
        ours, theirs = whole.transformer, model.transformer
        for name in path.split("."):
            ours, theirs = getattr(ours, name), getattr(theirs, name)
        ours.weight.set_value(theirs.weight[...].astype(jnp.float32))
    return whole


def test_matrices_are_rounded_and_nothing_else(mixed):
    model = mixed.transformer
    assert model.blocks.q.weight[...].dtype == model.embedding.weight[...].dtype == jnp.bfloat16
    assert model.blocks.attn_norm[...].dtype == mixed.dtype == jnp.float32
    want, got = (np.asarray(m.logits(IDS)) for m in (rounded(mixed), mixed))
    error = np.abs(got - want).max() / np.abs(want).max()
    assert 0 < error < 0.03


def test_the_gradient_of_a_prefix_is_that_of_the_rounded_model(mixed):
    whole = rounded(mixed)
    cartridge = whole.kv_as_cartridge(IDS[0, :12])

    def gradient(model):
        with jax.set_mesh(model.mesh):
            prefix = model.as_prefix(cartridge)
            tokens = place(model.mesh, IDS.astype(np.int32), TOKENS_BT)
            start = place(model.mesh, np.zeros(IDS.shape, np.int32), TOKENS_BT)
            positions = place(
                model.mesh, np.broadcast_to(np.arange(12, 52, dtype=np.int32), (4, 40)), TOKENS_BT
            )

            def total(kv):
                behind = prefix._replace(kv=kv)
                hidden, _ = model.transformer(tokens, positions, start, prefix=behind)
                return jnp.sum(hidden**2 * jnp.arange(hidden.shape[-1]))

            return np.asarray(jax.jit(jax.grad(total))(prefix.kv).v)

    want, got = gradient(whole), gradient(mixed)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


def test_sums_over_several_axes_are_those_of_einsum():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 4, 5), (4, 5, 6)))
    with jax.set_mesh(make_mesh(1, 1)):
        got = product("BTNH,NHD->BTD", None, x, w)
        one = product("BTNH,NHD->BTD", None, x[:1, :1], w.astype(jnp.bfloat16))
    np.testing.assert_allclose(got, jnp.einsum("BTNH,NHD->BTD", x, w), rtol=1e-5)
    assert one.shape == (1, 1, 6) and one.dtype == jnp.float32
    np.testing.assert_allclose(one, got[:1, :1], atol=0.1)


@pytest.mark.parametrize("mesh", MESHES)
def test_layers_one_by_one_give_what_scanned_ones_give(monkeypatch, mesh):
    model = load_model(TEST_MODEL, dtype=jnp.float32, mesh=make_mesh(*mesh))
    context = model.read(model.template.render_context("", "Ada Brown lives in Oslo."))
    prompts = ["Where does Ada Brown live?", "Who lives in Oslo?", "What?"]
    apart = model.generate(prompts, context, max_new_tokens=20)
    monkeypatch.setattr(engine, "takes_layers_apart", lambda _: False)
    model.release_engine()
    scanned = model.generate(prompts, context, max_new_tokens=20)
    assert [a.token_ids for a in apart] == [s.token_ids for s in scanned]
    for a, s in zip(apart, scanned, strict=True):
        np.testing.assert_allclose(a.logprobs, s.logprobs, atol=1e-4)
