"""Intervals about other documents."""

import numpy as np
import pytest

from cartridges_jax.evaluation.scoring import paired_difference
from experiments.embedded_world.over_documents import difference_over_documents


def test_documents_that_differ_widen_the_interval():
    """Half of the documents lost: what is said of other documents is unsure."""
    documents = np.repeat(np.arange(8), 50).tolist()
    reference, marks = [True] * 400, [document % 2 == 0 for document in documents]
    over_questions = paired_difference(marks, reference)
    over_documents = difference_over_documents(marks, reference, documents)
    assert over_documents.value == over_questions.value == -0.5
    # Eight means of 0 or -1: their standard error, and the t of seven degrees of freedom.
    assert over_documents.high + 0.5 == pytest.approx(
        2.364624 * np.std([0, 1] * 4, ddof=1) / 8**0.5
    )
    assert over_documents.high - over_documents.low > 4 * (over_questions.high + 0.5)


def test_the_interval_over_documents_holds_its_level(rng):
    """Of 400 tables of five documents of unequal sizes the true difference is in some 95 %."""
    inside, documents = 0, np.repeat(np.arange(5), (60, 75, 80, 85, 100))
    for _ in range(400):
        share = 0.8 + 0.08 * rng.uniform(-1, 1, 5)
        marks = (rng.random(400) < share[documents]).tolist()
        found = difference_over_documents(marks, [True] * 400, documents.tolist())
        inside += found.low <= -0.2 <= found.high
    assert 0.92 < inside / 400 < 0.98
