"""From answers of the embedded model to its scores: shares by type of question, with intervals."""

import collections
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from cartridges_jax.evaluation.questions import Question
from cartridges_jax.evaluation.scoring import is_right, wilson

FULL, NONE = "full context", "no context"
TWO_ANSWERS = ("yes/no", "compare", "order")  # their conclusion alone is scored too
DIRECT = ("lookup", "table", "copy", "update")  # that the text answers, beside "absent"
_CONCLUSION = re.compile(r"(so yes|so no|The \w+ is .+)\.$")


def _share(marks: Iterable[bool]) -> dict[str, float | None]:
    marks = list(marks)
    return wilson(sum(marks), len(marks)).as_json()


def _conclusion(text: str) -> str:
    match = _CONCLUSION.search(text)
    return match[1] if match else ""


def scores_of(documents: Sequence[dict[str, Any]], wanted: int) -> dict[str, Any]:
    """Shares of right answers by type and arm, over at most `wanted` questions of a type.

    Args:
      documents: of each its tokens, its number of facts, the fields of its questions, and the
        answers of every arm, the full context among them.
      wanted: most questions of a type; the others are left out.
    """
    rows: dict[str, list[tuple[Question, dict[str, str]]]] = collections.defaultdict(list)
    sources: dict[str, set[int]] = collections.defaultdict(set)
    for number, one in enumerate(documents):
        for i, fields in enumerate(one["questions"]):
            question = Question(**fields | {"answers": tuple(fields["answers"])})
            given = {arm: texts[i] for arm, texts in one["answers"].items()}
            if len(rows[question.type]) < wanted:
                rows[question.type].append((question, given))
                sources[question.type].add(number)

    def right(q: Question, text: str) -> bool:
        return is_right(text, q.answers, q.parser)

    types = {}
    for kind in sorted(rows):
        arms = rows[kind][0][1]
        types[kind] = {arm: _share(right(q, g[arm]) for q, g in rows[kind]) for arm in arms}
        types[kind]["documents"] = len(sources[kind])
        types[kind]["chance"] = statistics.fmean(q.chance or 0.0 for q, _ in rows[kind])
        if kind in TWO_ANSWERS:
            concluded = [(q, g) for q, g in rows[kind] if _conclusion(q.answers[0])]
            types[kind]["conclusion"] = {
                arm: _share(_conclusion(g[arm]) == _conclusion(q.answers[0]) for q, g in concluded)
                for arm in arms
            }
    result: dict[str, Any] = {
        "documents": len(documents),
        "tokens": [one["tokens"] for one in documents],
        "tokens_of_fact": statistics.fmean(one["tokens"] / one["facts"] for one in documents),
        "types": types,
    }
    if "absent" in rows:
        denials = [_denies(g[FULL]) for _, g in rows["absent"]]
        answers = [not _denies(g[FULL]) for kind in DIRECT for _, g in rows[kind]]
        result["absent"] = {
            "denied": _share(denials),
            "answered": _share(answers),
            "balanced": (statistics.fmean(denials) + statistics.fmean(answers)) / 2,
        }
    wrong = [
        {"question": q.question, "right": q.answers[0], "given": g[FULL]}
        for kind in sorted(rows)
        for q, g in [row for row in rows[kind] if not right(row[0], row[1][FULL])][:4]
    ]
    return result | {"errors": wrong}


def _denies(text: str) -> bool:
    return text.strip().endswith("is not in the text.")
