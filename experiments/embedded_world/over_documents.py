"""Differences between arms with an interval about other documents, each with its own cartridge."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from cartridges_jax.evaluation.marks import score_answers
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.evaluation.scoring import Share


def score_documents(
    questions: Sequence[Question],
    answers: dict[str, list[str]],
    reference: str,
    documents: Sequence[int],
) -> dict[str, Any]:
    """`score_answers`, with an interval over documents where there are several.

    `documents` says which document each question is about.
    """
    scores = score_answers(questions, answers, reference)
    given = [row["given"] for row in scores["answers"]]
    right = {arm: [row[arm]["right"] for row in given] for arm in answers}
    for arm in answers if len(set(documents)) > 1 else ():
        over = difference_over_documents(right[arm], right[reference], documents)
        scores["accuracy"][arm]["difference_over_documents"] = over.as_json()
    return scores


def difference_over_documents(
    a: Sequence[bool], b: Sequence[bool], documents: Sequence[int]
) -> Share:
    """The paired difference, with an interval about other documents, each with its cartridge.

    A ratio of sums over documents (Cochran, Sampling Techniques, section 6.4) with Student's t.

    Args:
      a: marks [n].
      b: marks [n].
      documents: which document each question is about, [n]; two or more.
    """
    _, of_question = np.unique(documents, return_inverse=True)
    sizes = np.bincount(of_question)
    sums = np.bincount(of_question, np.subtract(a, b, dtype=np.float64))
    n, count = len(a), len(sizes)
    value = sums.sum() / n
    variance = count / (count - 1) * ((sums - value * sizes) ** 2).sum() / n**2
    half = scipy.special.stdtrit(count - 1, 0.975) * math.sqrt(variance)
    return Share(float(value), float(value - half), float(value + half), n)
