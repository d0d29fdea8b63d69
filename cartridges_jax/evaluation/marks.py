"""From every arm's answers to accuracy: shares with intervals, differences, agreement."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from cartridges_jax.evaluation.questions import Question
from cartridges_jax.evaluation.scoring import (
    Share,
    is_right,
    normalise,
    paired_difference,
    wilson,
)


def score_answers(
    questions: Sequence[Question],
    answers: dict[str, list[str]],
    reference: str,
) -> dict[str, Any]:
    """Scores every arm's answers.

    Args:
      questions: what was asked.
      answers: by arm, in the order of the questions.
      reference: the arm that the others are compared with, question by question.

    Returns:
      `accuracy`: by arm, over all questions, by type, over the questions that the reference gets
      right, and the paired difference to the reference; and `agreement` with the reference: the
      share of questions that both get right, or answer in the same words. `answers`: every question
      with all answers.
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
        agreed = [
            (mark and known) or normalise(text) == normalise(other)
            for mark, known, text, other in zip(
                marks, right[reference], answers[arm], answers[reference], strict=True
            )
        ]
        accuracy[arm] = {
            "agreement": wilson(sum(agreed), len(agreed)).as_json(),
            "all": wilson(sum(marks), len(marks)).as_json(),
            "where_reference_is_right": wilson(sum(solvable), len(solvable)).as_json(),
            "difference_to_reference": difference.as_json(),
            "by_type": by_type,
        }
    chances: dict[str, float | None] = {}
    for kind in types:
        known = [q.chance for q in questions if q.type == kind and q.chance is not None]
        chances[kind] = statistics.fmean(known) if known else None
    rows = []
    for i, question in enumerate(questions):
        given = {arm: {"text": answers[arm][i], "right": right[arm][i]} for arm in answers}
        rows.append(dataclasses.asdict(question) | {"given": given})
    return {"accuracy": accuracy, "reference": reference, "chance": chances, "answers": rows}
