"""What an evaluation takes from an earlier one is what it would have measured."""

import numpy as np

from cartridges_jax.evaluation import arms
from cartridges_jax.evaluation.evaluate import EvaluateConfig, evaluate
from cartridges_jax.evaluation.suites import embedded_questions, held_out_document

CONFIG = EvaluateConfig(answer_max_tokens=16, throughput_batch=0)


def test_controls_of_any_size_are_answered_once(embedded, tmp_path, monkeypatch):
    document, made = held_out_document("evaluate", 200)
    questions = embedded_questions(made, "evaluate", 2, shares={"lookup": 1.0})
    tokens = embedded.template.render_context(document.title, document.text)
    small, large = (embedded.kv_as_cartridge(np.asarray(tokens[:n])) for n in (8, 16))

    asked = []
    monkeypatch.setattr(arms, "answer", lambda *a, f=arms.answer: asked.append(a[1].name) or f(*a))
    first = evaluate(embedded, small, [document], tmp_path, questions, config=CONFIG)
    whole = evaluate(embedded, large, [document], tmp_path, questions, config=CONFIG)
    assert len(asked) == 10
    asked.clear()
    quick = evaluate(embedded, large, [document], tmp_path, questions, config=CONFIG, earlier=first)
    assert asked == [arms.TRUNCATED, arms.CARTRIDGE]
    assert quick == whole
