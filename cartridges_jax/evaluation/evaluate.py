"""Evaluates a cartridge beside its controls and writes results.json and report.html.

With questions whose answers are known: accuracy by type with intervals, and paired differences to
the full context. With held-out conversations: KL to the in-context teacher and log-perplexity.
Always: KV bytes of each arm and decode tokens a second of full context against cartridge.
"""

import dataclasses
import hashlib
import logging
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cartridges_jax import files
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.config import check_ranges, first_difference, setting, to_dict
from cartridges_jax.corpus import Document
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation import arms as arms_module
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.evaluation.divergence import divergence
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.evaluation.report import write_report
from cartridges_jax.evaluation.scoring import (
    Share,
    difference_over_documents,
    is_right,
    paired_difference,
    wilson,
)
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress
from cartridges_jax.self_study import conversation
from cartridges_jax.self_study.conversation import Conversation
from cartridges_jax.self_study.synthesize import load_conversations
from cartridges_jax.shards import ShardSet

_log = logging.getLogger(__name__)

SAMPLES = 12  # held-out questions whose answers are shown
TIMING_RUNS = 3
TIMING_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    answer_max_tokens: int = setting(
        96, "Longest answer, tokens; a longer one is cut there.", above=0
    )
    throughput_batch: int = setting(
        16, "Requests that decode together when speed is measured; 0: off.", at_least=0
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
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs every arm over the same questions and conversations.

    Args:
      model: the base.
      cartridge: under test; must belong to `model`.
      documents: the corpus, for the controls.
      out: folder of results.json and report.html.
      questions: with known answers; may be empty.
      held_out: folder of conversations with targets that training did not see, or None.
      config: settings.
      trained_on: folder of the training conversations; what they ask too is not held out and is
        left out of the measurement. None if the two are known to be apart.
      earlier: what an evaluation of another cartridge of the same model, documents, questions,
        conversations and settings returned; the arms that are the same there are not run again.

    Returns:
      What results.json holds.

    Raises:
      InputError: if the cartridge belongs to another model, or there is nothing to measure.
      ValueError: if `earlier` is about something else.
    """
    config = config or EvaluateConfig()
    check_ranges(config)
    model.check_cartridge(cartridge)
    made_of = cartridge.provenance.get("corpus")
    given = [{"name": d.name, "sha256": d.sha256} for d in documents]
    difference = first_difference(made_of, given, "corpus") if made_of is not None else None
    if difference:
        raise InputError(f"the cartridge was made of other text: {difference}")
    if not questions and held_out is None:
        raise InputError("an evaluation needs questions with answers or held-out conversations")
    folder = files.output_folder(out)
    unseen = None if held_out is None else read_held_out(model, held_out, trained_on)
    results = measure(model, cartridge, documents, questions, unseen, config, earlier)
    files.write_json(folder / "results.json", results)
    write_report(folder / "report.html", results)
    return results


def measure(
    model: LanguageModel,
    cartridge: Cartridge,
    documents: Sequence[Document],
    questions: Sequence[Question],
    held_out: "HeldOut | None",
    config: EvaluateConfig,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Computes what `evaluate` writes."""
    room = _room(model, questions, held_out, config.answer_max_tokens)
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
        "settings": to_dict(config),
        "corpus": [{"name": d.name, "title": d.title, "sha256": d.sha256} for d in documents],
        "arms": {arm.name: _describe(model, arm) for arm in arms},
    }
    earlier = earlier or {}
    _check_same(earlier, results, questions, held_out)
    known = arms_module.OF_ANY_SIZE if earlier else ()
    new = [arm for arm in arms if arm.name not in known]
    if questions:
        answers = {
            name: [row["given"][name]["text"] for row in earlier["answers"]] for name in known
        }
        texts = [q.question for q in questions]
        bar = progress(len(new) * len(questions), "evaluate", "answer")
        for arm in new:
            answers[arm.name] = arms_module.answer(model, arm, texts, config.answer_max_tokens)
            bar.update(len(questions))
        bar.close()
        answers = {arm.name: answers[arm.name] for arm in arms}
        results |= score_answers(questions, answers, reference=arms_module.FULL_CONTEXT)
    if held_out is not None:
        results["held_out"] = {
            "conversations": len(held_out.records),
            "left_out_because_trained_on": held_out.num_seen,
            "records": held_out.fingerprint,
        }
        for name in known:
            results["arms"][name]["held_out"] = earlier["arms"][name]["held_out"]
        for arm in new:
            results["arms"][arm.name]["held_out"] = divergence(model, arm, held_out.records)
        shown = held_out.conversations[:SAMPLES]
        samples = _sample_answers(model, new, shown, config)
        for row, before in zip(samples, earlier.get("samples", samples), strict=True):
            row["given"] = {
                arm.name: (before if arm.name in known else row)["given"][arm.name] for arm in arms
            }
        results["samples"] = samples
    if config.throughput_batch:
        for arm in arms:
            if arm.name in (arms_module.FULL_CONTEXT, arms_module.CARTRIDGE):
                rate = decode_rate(model, arm, config.throughput_batch)
                if rate is not None:
                    results["arms"][arm.name]["decode_tokens_per_s"] = rate
    return results


def _room(
    model: LanguageModel,
    questions: Sequence[Question],
    held_out: "HeldOut | None",
    answer_max_tokens: int,
) -> int:
    """Tokens to leave beside the context for the longest that will follow it."""
    asked = [q.question for q in questions]
    rows = [0]
    if held_out is not None:
        asked += [c.messages[0]["content"] for c in held_out.conversations[:SAMPLES]]
        rows = [targets_file.decode_record(r)["token_ids"].size for r in held_out.records]
    longest = max(len(model.render_prompt(text, has_context=True)) for text in asked)
    return max(answer_max_tokens + longest, 2 * TIMING_TOKENS + 16, *rows)


def _check_same(
    earlier: dict[str, Any],
    results: dict[str, Any],
    questions: Sequence[Question],
    held_out: "HeldOut | None",
) -> None:
    """Raises `ValueError` if the arms of an earlier evaluation cannot be taken for this one's."""
    if not earlier:
        return
    same = {name: earlier[name] == results[name] for name in ("model", "corpus")}
    longest = [r["settings"]["answer_max_tokens"] for r in (earlier, results)]
    same["answer_max_tokens"] = longest[0] == longest[1]
    before = [row["question"] for row in earlier.get("answers", [])]
    same["questions"] = before == [q.question for q in questions]
    unseen = None if held_out is None else held_out.fingerprint
    same["held_out"] = earlier.get("held_out", {}).get("records") == unseen
    if not all(same.values()):
        other = next(name for name, is_same in same.items() if not is_same)
        raise ValueError(f"the earlier evaluation has other {other}")


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Conversations that training did not see, with their target records in the same order."""

    conversations: list[Conversation]
    records: list[bytes]
    num_seen: int  # left out, because training asked the same

    @property
    def fingerprint(self) -> str:
        """sha256 over the records."""
        return hashlib.sha256(b"".join(self.records)).hexdigest()


def read_held_out(
    model: LanguageModel,
    folder: str | os.PathLike[str],
    trained_on: str | os.PathLike[str] | None = None,
) -> HeldOut:
    """Reads a folder of conversations with targets, without those that ask what training asked.

    Raises:
      InputError: if either folder is damaged, another model scored them, or nothing is left.
    """
    asked = set()
    if trained_on is not None:
        training = ShardSet.read(trained_on, conversation.SHARDS)
        for index in training.shards:
            asked |= {c.messages[0]["content"] for c in load_conversations(training, index)}
    conversations = ShardSet.read(folder, conversation.SHARDS)
    targets = ShardSet.read(folder, targets_file.SHARDS)
    difference = first_difference(targets.inputs.get("model"), model.fingerprint, "model")
    if difference:
        raise InputError(f"the targets in {folder} were scored by another model: {difference}")
    found = HeldOut([], [], 0)
    seen = 0
    for index in sorted(targets.shards):
        pairs = zip(load_conversations(conversations, index), targets.records(index), strict=True)
        for one, record in pairs:
            if one.messages[0]["content"] in asked:
                seen += 1
            else:
                found.conversations.append(one)
                found.records.append(record)
    if not found.records:
        raise InputError(f"all {seen} conversations in {folder} ask what training asked too")
    return dataclasses.replace(found, num_seen=seen)


def _sample_answers(
    model: LanguageModel,
    arms: Sequence[Arm],
    conversations: Sequence[Conversation],
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    """Answers of every arm to questions whose right answer nobody knows, beside the teacher's."""
    asked = [c.messages[0]["content"] for c in conversations]
    given = {a.name: arms_module.answer(model, a, asked, config.answer_max_tokens) for a in arms}
    return [
        {
            "question": asked[i],
            "teacher": c.messages[1]["content"],
            "given": {name: {"text": texts[i]} for name, texts in given.items()},
        }
        for i, c in enumerate(conversations)
    ]


def score_answers(
    questions: Sequence[Question],
    answers: dict[str, list[str]],
    reference: str,
    documents: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Scores every arm's answers.

    Args:
      questions: what was asked.
      answers: by arm, in the order of the questions.
      reference: the arm that the others are compared with, question by question.
      documents: which document each question is about; None if it is one corpus.

    Returns:
      `accuracy`: by arm, over all questions, by type, over the questions that the reference gets
      right, and the paired difference to the reference, of several documents with an interval over
      these too; `answers`: every question with all answers.
    """
    right = {
        arm: [is_right(text, q.answers, q.parser) for q, text in zip(questions, texts, strict=True)]
        for arm, texts in answers.items()
    }
    types = sorted({q.type for q in questions})
    accuracy = {}
    for arm, marks in right.items():
        by_type = {}
        for kind in types:
            of_kind = [mark for mark, q in zip(marks, questions, strict=True) if q.type == kind]
            by_type[kind] = wilson(sum(of_kind), len(of_kind)).as_json()
        difference = paired_difference(marks, right[reference])
        if arm == reference:  # with itself, and so for certain
            difference = Share(0.0, 0.0, 0.0, len(marks))
        solvable = [mark for mark, known in zip(marks, right[reference], strict=True) if known]
        accuracy[arm] = {
            "all": wilson(sum(marks), len(marks)).as_json(),
            "where_reference_is_right": wilson(sum(solvable), len(solvable)).as_json(),
            "difference_to_reference": difference.as_json(),
            "by_type": by_type,
        }
        if documents is not None and len(set(documents)) > 1:
            over = difference_over_documents(marks, right[reference], documents)
            accuracy[arm]["difference_over_documents"] = over.as_json()
    chances: dict[str, float | None] = {}
    for kind in types:
        known = [q.chance for q in questions if q.type == kind and q.chance is not None]
        chances[kind] = statistics.fmean(known) if known else None
    rows = []
    for i, question in enumerate(questions):
        given = {arm: {"text": answers[arm][i], "right": right[arm][i]} for arm in answers}
        rows.append(dataclasses.asdict(question) | {"given": given})
    return {"accuracy": accuracy, "reference": reference, "chance": chances, "answers": rows}


def decode_rate(model: LanguageModel, arm: Arm, batch: int) -> dict[str, Any] | None:
    """Decode tokens a second of `batch` requests at once, reading of the context excluded.

    With "full context" each request carries the document in its own cache; with a cartridge all
    share it. The difference of a long and a short generation leaves the prefill out.
    """
    suffix = model.render_prompt("?", has_context=True)
    prompts = [[*arm.prompt_head, *suffix]] * batch

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        model.generate(
            prompts, arm.prefix, max_new_tokens=tokens, batch_size=batch, stop_token_ids=()
        )
        return time.perf_counter() - started

    try:
        seconds(TIMING_TOKENS)  # compiles; how many tokens are made is not compiled in
        differences = [
            seconds(2 * TIMING_TOKENS) - seconds(TIMING_TOKENS) for _ in range(TIMING_RUNS)
        ]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _log.warning("%s: %d requests do not fit the memory; no speed", arm.name, batch)
        return None
    runs = [batch * TIMING_TOKENS / d for d in differences if d > 0]
    if not runs:
        return None  # a busy machine: the longer generations took no longer than the short ones
    return {
        "median": statistics.median(runs),
        "min": min(runs),
        "max": max(runs),
        "batch": batch,
        "runs": len(runs),
    }


def _describe(model: LanguageModel, arm: Arm) -> dict[str, Any]:
    itemsize = jnp.dtype(model.dtype).itemsize
    return {
        "tokens": arm.num_tokens,
        "kv_bytes": arm.num_tokens * model.config.kv_floats_per_token * itemsize,
        "note": arm.note,
    }
