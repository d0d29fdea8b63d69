"""What an evaluation takes from an earlier one is what it would have measured."""

import numpy as np
import pytest

from cartridges_jax.corpus import Chunk
from cartridges_jax.distillation.targets import encode_record
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation import arms
from cartridges_jax.evaluation.divergence import divergence
from cartridges_jax.evaluation.evaluate import EvaluateConfig, HeldOut, _check_same, _room, evaluate
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.conversation import Conversation
from tests.conftest import document_named, questions_named

CONFIG = EvaluateConfig(answer_max_tokens=16, throughput_batch=0)


def test_controls_of_any_size_are_answered_once(trained, tmp_path, monkeypatch):
    document = document_named("evaluate")
    questions = questions_named("evaluate")
    tokens = trained.template.render_context(document.title, document.text)
    small, large = (trained.kv_as_cartridge(np.asarray(tokens[:n])) for n in (8, 16))

    asked = []
    monkeypatch.setattr(arms, "answer", lambda *a, f=arms.answer: asked.append(a[1].name) or f(*a))
    first = evaluate(trained, small, [document], tmp_path, questions, config=CONFIG)
    whole = evaluate(trained, large, [document], tmp_path, questions, config=CONFIG)
    assert len(asked) == 10
    asked.clear()
    quick = evaluate(trained, large, [document], tmp_path, questions, config=CONFIG, earlier=first)
    assert asked == [arms.TRUNCATED, arms.CARTRIDGE]
    assert quick == whole
    with pytest.raises(ValueError, match="other questions"):
        evaluate(trained, large, [document], tmp_path, questions[:1], config=CONFIG, earlier=first)


def held_out_conversation(trained, num_tokens):
    message = Message(role="user", content="Who lives in the north? " * 20)
    said = Conversation("0-0", Chunk("d", "D", "", 0, 0), "question", "", (message, message))
    record = encode_record(
        np.arange(num_tokens), np.array([3]), np.zeros((1, 20), np.int32), np.zeros((1, 20))
    )
    return HeldOut([said], [record], num_seen=0)


def test_the_context_leaves_room_for_held_out_conversations(trained):
    """A corpus that fills the window is cut for whatever follows it."""
    asked = len(trained.render_prompt("Who lives in the north? " * 20, has_context=True))
    short, long = (held_out_conversation(trained, n) for n in (40, 700))
    assert _room(trained, [], short, 96) == max(asked + 96, 144)
    assert _room(trained, [], long, 96) == 700


def test_a_conversation_beyond_the_window_is_refused(trained):
    window = trained.config.window
    arm = arms.Arm("full context", window - 100, tuple(trained.template.empty_context()))
    records = held_out_conversation(trained, window).records
    with pytest.raises(InputError, match=f"window is {window}"):
        divergence(trained, arm, records)


def test_conversations_of_another_evaluation_are_told(trained):
    """As many of them are not the same ones."""
    ours, others = (held_out_conversation(trained, n) for n in (40, 41))
    result = {"model": "m", "corpus": [], "settings": {"answer_max_tokens": 9}}
    result["held_out"] = {"conversations": 1, "records": ours.fingerprint}
    _check_same(result, result, [], ours)
    for held_out in (others, None):
        with pytest.raises(ValueError, match="other held_out"):
            _check_same(result, result, [], held_out)
