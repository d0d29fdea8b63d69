"""The first test of any implementation: real KV loaded as a cartridge is in-context reading."""

import numpy as np
import pytest

from cartridges_jax.evaluation.arms import answer, cartridge_arm, control_arms
from cartridges_jax.evaluation.suites import embedded_questions, held_out_document
from tests.conftest import make_tiny_model


@pytest.mark.parametrize("split", [1, 37, 150, 299])
def test_logits_after_the_real_kv_are_those_in_context(embedded, split):
    document, _ = held_out_document("oracle", 280)
    ids = np.asarray(embedded.template.render_context(document.title, document.text))[:300]
    whole = np.asarray(embedded.logits(ids))
    after = np.asarray(embedded.logits(ids[split:], embedded.kv_as_cartridge(ids[:split])))
    assert np.abs(after - whole[split:]).max() <= 1e-4


def test_whole_document_as_a_cartridge_answers_alike(embedded):
    document, made = held_out_document("oracle answers", 500)
    questions = [q.question for q in embedded_questions(made, "oracle", 40)]
    context = embedded.template.render_context(document.title, document.text)
    cartridge = embedded.kv_as_cartridge(context)
    arms = {arm.name: arm for arm in control_arms(embedded, [document], 32, 160)}
    in_context = answer(embedded, arms["full context"], questions, 60)
    assert answer(embedded, cartridge_arm(cartridge), questions, 60) == in_context
    assert answer(embedded, arms["full KV"], questions, 60) == in_context


@pytest.mark.parametrize("mesh", [(4, 2), (2, 4), (1, 8)])
def test_holds_on_every_mesh(tiny, mesh):
    ids = np.arange(3, 83)
    want = np.asarray(tiny.logits(ids))[30:]
    model = make_tiny_model(*mesh)
    cartridge = model.kv_as_cartridge(ids[:30])
    got = np.asarray(model.logits(np.tile(ids[30:], (4, 1)), cartridge))
    assert np.abs(got - want[None]).max() <= 1e-4
