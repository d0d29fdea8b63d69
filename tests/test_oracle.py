"""The first test of any implementation: real KV loaded as a cartridge is in-context reading."""

import numpy as np
import pytest

from cartridges_jax import language_model
from cartridges_jax.evaluation.arms import answer, cartridge_arm, control_arms
from tests.conftest import MESHES, document_named, make_tiny_model, questions_named


@pytest.mark.parametrize("split", [1, 37, 150, 299])
def test_logits_after_the_real_kv_are_those_in_context(trained, split):
    document = document_named("oracle")
    ids = np.asarray(trained.template.render_context(document.title, document.text))[:300]
    whole = np.asarray(trained.logits(ids))
    after = np.asarray(trained.logits(ids[split:], trained.kv_as_cartridge(ids[:split])))
    assert np.abs(after - whole[split:]).max() <= 1e-4


def test_whole_document_as_a_cartridge_answers_alike(trained):
    document = document_named("oracle answers")
    questions = [q.question for q in questions_named("oracle answers")]
    context = trained.template.render_context(document.title, document.text)
    cartridge = trained.kv_as_cartridge(context)
    arms = {arm.name: arm for arm in control_arms(trained, [document], 32, 160)}
    in_context = answer(trained, arms["full context"], questions, 60)
    assert answer(trained, cartridge_arm(cartridge), questions, 60) == in_context
    assert answer(trained, arms["full KV"], questions, 60) == in_context


@pytest.mark.parametrize("mesh", [(4, 2), (2, 4), (1, 8)])
def test_holds_on_every_mesh(tiny, mesh):
    ids = np.arange(3, 83)
    want = np.asarray(tiny.logits(ids))[30:]
    model = make_tiny_model(*mesh)
    cartridge = model.kv_as_cartridge(ids[:30])
    got = np.asarray(model.logits(np.tile(ids[30:], (4, 1)), cartridge))
    assert np.abs(got - want[None]).max() <= 1e-4


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("length", [16, 17, 70])
def test_a_long_context_is_read_in_pieces(monkeypatch, mesh, length):
    """The same KV as in one piece, at any length."""
    model = make_tiny_model(*mesh)
    ids = np.random.default_rng(length).integers(3, model.config.vocab_size, length)
    whole = model.kv_as_cartridge(ids)
    monkeypatch.setattr(language_model, "PIECE", 16)
    pieces = model.kv_as_cartridge(ids)
    np.testing.assert_allclose(pieces.keys, whole.keys, atol=2e-5)
    np.testing.assert_allclose(pieces.values, whole.values, atol=2e-5)
