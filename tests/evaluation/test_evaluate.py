"""An evaluation keeps what it has, and measures against the full context."""

import numpy as np
import pytest

from cartridges_jax.corpus import Chunk
from cartridges_jax.distillation.targets import encode_record
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation import arms
from cartridges_jax.evaluation.divergence import divergence
from cartridges_jax.evaluation.held_out import HeldOut
from cartridges_jax.evaluation.run import EvaluateConfig, _room, evaluate
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.conversation import Conversation
from tests.conftest import document_named, questions_named

CONFIG = EvaluateConfig(answer_max_tokens=16, throughput_batch=0)


@pytest.fixture
def about(trained):
    """A document, questions about it, and its first eight tokens as a cartridge."""
    document, questions = document_named("evaluate"), questions_named("evaluate")
    tokens = trained.template.render_context(document.title, document.text)
    return document, questions, trained.kv_as_cartridge(np.asarray(tokens[:8]))


def test_answers_are_kept_and_a_stopped_evaluation_goes_on(trained, about, tmp_path, monkeypatch):
    document, questions, cartridge = about
    asked, stops = [], [5]
    answer = arms.answer_turns

    def counted(model, arm, texts, longest):
        for i, turn in answer(model, arm, texts, longest):
            asked.append((arm.name, texts[i]))
            if stops == [len(asked)]:
                stops.clear()
                raise RuntimeError("stopped")
            yield i, turn

    monkeypatch.setattr(arms, "answer_turns", counted)
    with pytest.raises(RuntimeError, match="stopped"):
        evaluate(trained, cartridge, [document], tmp_path, questions, config=CONFIG)
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"arm": "full KV", "questi')  # a kill in the middle of a line
    results = evaluate(trained, cartridge, [document], tmp_path, questions, config=CONFIG)
    assert len(asked) == 1 + len(results["arms"]) * len(questions)  # the fifth alone came twice
    asked.clear()
    assert evaluate(trained, cartridge, [document], tmp_path, questions, config=CONFIG) == results
    assert asked == []
    # Answers of another cartridge, or to other questions, are no answers to these.
    other = trained.kv_as_cartridge(np.arange(3, 11))
    evaluate(trained, other, [document], tmp_path, questions, config=CONFIG)
    assert len(asked) == len(results["arms"]) * len(questions)


def test_full_kv_is_the_teacher_itself(trained, about, tmp_path):
    """No divergence from the full context over its own answers, and agreement in all."""
    document, questions, cartridge = about
    results = evaluate(trained, cartridge, [document], tmp_path, questions, config=CONFIG)
    kl = {name: arm["in_context"]["kl"] for name, arm in results["arms"].items()}
    assert abs(kl["full KV"] - kl["full context"]) < 1e-5
    assert kl["full KV"] < kl["cartridge"] and kl["full KV"] < kl["no context"]
    agreement = results["accuracy"]["full KV"]["agreement"]
    assert agreement["value"] == 1.0 and agreement["n"] == len(questions)


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
    assert _room(trained, [], short, 96) == max(asked + 96 + 8, 80)
    assert _room(trained, [], long, 96) == 700


def test_a_conversation_beyond_the_window_is_refused(trained):
    window = trained.config.window
    arm = arms.Arm("full context", window - 100, tuple(trained.template.empty_context()))
    records = held_out_conversation(trained, window).records
    with pytest.raises(InputError, match=f"window is {window}"):
        divergence(trained, arm, records)
