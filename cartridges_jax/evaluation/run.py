"""Evaluates a cartridge beside its controls and writes results.json and report.html.

With questions whose answers are known: accuracy by type with intervals, paired differences to the
full context and agreement with it, and the KL divergence to the teacher over its own answers. With
held-out conversations: KL and log-perplexity over these. Always: KV bytes of each arm; decode
tokens a second where they are asked for. Answers are kept as they come: what is stopped goes on.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cartridges_jax import files
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.config import check_ranges, digest, first_difference, setting
from cartridges_jax.corpus import Document, corpus_identity
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation import arms as arms_module
from cartridges_jax.evaluation.answers import AnswerLog
from cartridges_jax.evaluation.arms import FULL_CONTEXT, FULL_KV, Arm
from cartridges_jax.evaluation.divergence import divergence
from cartridges_jax.evaluation.held_out import HeldOut, read_held_out
from cartridges_jax.evaluation.marks import score_answers
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.evaluation.report import write_report
from cartridges_jax.evaluation.speed import TIMED_TOKENS, decode_rate
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.conversation import Conversation

SAMPLES = 12  # held-out questions whose answers are shown


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    answer_max_tokens: int = setting(
        96, "Longest answer, tokens; a longer one is cut there.", above=0
    )
    throughput_batch: int = setting(
        0,
        "Requests that decode together when speed is measured, which takes some minutes on a CPU; "
        "0: it is not.",
        at_least=0,
    )


def evaluate(
    model: LanguageModel,
    cartridge: Cartridge,
    documents: Sequence[Document],
    out: str | os.PathLike[str],
    questions: Sequence[Question] = (),
    held_out: str | os.PathLike[str] | None = None,
    config: EvaluateConfig | None = None,
    trained_on: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Runs every arm over the same questions and conversations; goes on if begun before.

    Args:
      model: the base.
      cartridge: under test; must belong to `model`.
      documents: the corpus, for the controls.
      out: folder of results.json and report.html; answers are kept there as they come.
      questions: with known answers; may be empty.
      held_out: folder of conversations with targets that training did not see, or None.
      config: settings.
      trained_on: folder of the training conversations; what they ask too is not held out and is
        left out of the measurement. None if the two are known to be apart.

    Returns:
      What results.json holds.

    Raises:
      InputError: if the cartridge belongs to another model, or there is nothing to measure.
    """
    config = config or EvaluateConfig()
    check_ranges(config)
    model.check_cartridge(cartridge)
    made_of = cartridge.provenance.get("corpus")
    given = corpus_identity(documents)
    difference = first_difference(made_of, given, "corpus") if made_of is not None else None
    if difference:
        raise InputError(f"the cartridge was made of other text: {difference}")
    if not questions and held_out is None:
        raise InputError("an evaluation needs questions with answers or held-out conversations")
    folder = files.output_folder(out)
    unseen = None if held_out is None else read_held_out(model, held_out, trained_on)
    room = _room(model, questions, unseen, config.answer_max_tokens)
    if cartridge.next_position + room > model.config.window:
        raise InputError(
            f"the cartridge ends at position {cartridge.next_position}, and what follows it takes "
            f"{room}: more than the model's window of {model.config.window}"
        )
    arms = arms_module.control_arms(model, documents, cartridge.num_slots, room)
    arms.append(arms_module.cartridge_arm(cartridge))
    results: dict[str, Any] = {
        "model": model.identity,
        "cartridge": {"num_slots": cartridge.num_slots, "provenance": cartridge.provenance},
        "settings": dataclasses.asdict(config),
        "corpus": [{"title": d.title} | i for d, i in zip(documents, given, strict=True)],
        "arms": {arm.name: _describe(model, arm) for arm in arms},
    }
    asked = [q.question for q in questions]
    shown: list[Conversation] = []
    if unseen is not None:
        shown = unseen.conversations[:SAMPLES]
        asked += [c.messages[0]["content"] for c in shown]
    log = AnswerLog(folder, _answers_to(model, cartridge, results, asked))
    turns = {arm.name: log.ask(model, arm, asked, config.answer_max_tokens) for arm in arms}
    answers = {name: [model.template.said(t["content"]) for t in ts] for name, ts in turns.items()}
    if questions:
        of_questions = {name: texts[: len(questions)] for name, texts in answers.items()}
        results |= score_answers(questions, of_questions, reference=FULL_CONTEXT)
        told = _told_in_context(model, arms, questions, turns[FULL_CONTEXT][: len(questions)])
        for arm in arms if told else ():
            results["arms"][arm.name]["in_context"] = divergence(model, arm, told)
    if unseen is not None:
        results["held_out"] = {
            "conversations": len(unseen.records),
            "left_out_because_trained_on": unseen.num_seen,
        }
        for arm in arms:
            results["arms"][arm.name]["held_out"] = divergence(model, arm, unseen.records)
        results["samples"] = [
            {
                "question": c.messages[0]["content"],
                "teacher": c.messages[1]["content"],
                "given": {
                    name: {"text": texts[len(questions) + i]} for name, texts in answers.items()
                },
            }
            for i, c in enumerate(shown)
        ]
    for arm in arms if config.throughput_batch else ():
        if arm.name in (FULL_CONTEXT, arms_module.CARTRIDGE):
            rate = decode_rate(model, arm, config.throughput_batch)
            if rate is not None:
                results["arms"][arm.name]["decode_tokens_per_s"] = rate
    files.write_json(folder / "results.json", results)
    write_report(folder / "report.html", results)
    return results


def _answers_to(
    model: LanguageModel, cartridge: Cartridge, results: dict[str, Any], asked: Sequence[str]
) -> dict[str, Any]:
    """What decides the answers: kept answers to anything else are not these."""
    slots = hashlib.sha256(str(cartridge.next_position).encode())
    for x in (cartridge.keys, cartridge.values):
        slots.update(np.ascontiguousarray(x).view(np.uint8).data)
    return {
        "model": model.identity,
        "cartridge": slots.hexdigest(),
        "arms": {name: [arm["tokens"], arm["note"]] for name, arm in results["arms"].items()},
        "corpus": results["corpus"],
        "answer_max_tokens": results["settings"]["answer_max_tokens"],
        "questions": digest(list(asked)),
    }


def _told_in_context(
    model: LanguageModel,
    arms: Sequence[Arm],
    questions: Sequence[Question],
    answers: Sequence[Message],
) -> list[bytes]:
    """The questions with the full context's own answers, and the teacher's targets of these."""
    turns = [
        (Message(role="user", content=q.question), answer)
        for q, answer in zip(questions, answers, strict=True)
        if answer["content"].strip()
    ]
    teacher = model.as_prefix(next(arm for arm in arms if arm.name == FULL_KV).prefix)
    if not turns or teacher is None:
        return []
    suffixes = [model.template.render_suffix(both) for both in turns]
    return targets_file.score_suffixes(model, teacher, suffixes)


def _room(
    model: LanguageModel,
    questions: Sequence[Question],
    held_out: HeldOut | None,
    answer_max_tokens: int,
) -> int:
    """Tokens to leave beside the context for the longest that will follow it."""
    asked = [q.question for q in questions]
    rows = [0]
    if held_out is not None:
        asked += [c.messages[0]["content"] for c in held_out.conversations[:SAMPLES]]
        rows = [targets_file.decode_record(r)["token_ids"].size for r in held_out.records]
    longest = max(len(model.render_prompt(text, has_context=True)) for text in asked)
    return max(answer_max_tokens + longest + 8, TIMED_TOKENS + 16, *rows)


def _describe(model: LanguageModel, arm: Arm) -> dict[str, Any]:
    itemsize = jnp.dtype(model.dtype).itemsize
    return {
        "tokens": arm.num_tokens,
        "kv_bytes": arm.num_tokens * model.config.kv_floats_per_token * itemsize,
        "note": arm.note,
    }
