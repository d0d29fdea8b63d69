"""From what every arm has answered to the cartridge table."""

import itertools
import json
import statistics
from collections.abc import Sequence
from typing import Any

from cartridges_jax.evaluation.arms import FULL_CONTEXT
from cartridges_jax.evaluation.questions import Question
from experiments.embedded_world.over_documents import score_documents
from experiments.embedded_world.studied_documents import BASELINE_SIZE, SIZES


def still_valid(earlier: dict[str, Any], made_with: dict[str, Any]) -> dict[str, list[str]]:
    """What arms have answered whose settings, text and questions are as they were."""
    then, now = (json.loads(json.dumps(of)) for of in (earlier.get("made_with", {}), made_with))
    runs_then, runs_now = then.pop("runs", {}), now.pop("runs")
    if then != now:
        return {}
    same = (arm for arm in earlier["answers"] if runs_then.get(arm) == runs_now.get(arm))
    return {arm: earlier["answers"][arm] for arm in same}


def scored(parts: Sequence[dict[str, Any]], reference: str) -> dict[str, Any]:
    """Accuracy of every arm over all questions, with its difference to the reference."""
    fields = [q for part in parts for q in part["questions"]]
    questions = [Question(**{**f, "answers": tuple(f["answers"])}) for f in fields]
    answers = {arm: [a for p in parts for a in p["answers"][arm]] for arm in parts[0]["answers"]}
    documents = [i for i, part in enumerate(parts) for _ in part["questions"]]
    scores = score_documents(questions, answers, reference, documents)
    del scores["answers"]  # they stand in the documents' own files
    return scores


def short_documents(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table over all documents together."""
    described = [part["document"] for part in parts]
    scores = scored(parts, FULL_CONTEXT)
    alone = [scored([part], FULL_CONTEXT)["accuracy"] for part in parts]
    mean_tokens = statistics.fmean(d["tokens"] for d in described)
    mean_facts = statistics.fmean(d["facts"] for d in described)
    sizes = {
        f"cartridge {p}": {"compression": mean_tokens / p, "facts_per_slot": mean_facts / p}
        for p in SIZES
    }
    largest = {
        "own questions": largest_within(scores, sizes, "cartridge "),
        "template questions": largest_within(scores, sizes, "templates "),
    }
    return {
        "documents": described,
        "sizes": sizes,
        "baseline_slots": BASELINE_SIZE,
        "tokens": {
            arm: statistics.fmean(part["tokens"][arm] for part in parts)
            for arm in parts[0]["tokens"]
        },
        "largest_within_5_points": largest,
        "differences_by_document": [
            {arm: of["difference_to_reference"] for arm, of in one.items()} for one in alone
        ],
        **scores,
    }


def largest_within(scores: dict[str, Any], sizes: dict[str, Any], prefix: str) -> float | None:
    """The compression up to which every size's difference to full context surely exceeds -5 points.

    None if the smallest one's does not. A larger one that passes behind one that fails is luck.
    """
    compressions = {
        sizes[f"cartridge {arm.split()[-1]}"]["compression"]: of["difference_to_reference"]["low"]
        for arm, of in scores["accuracy"].items()
        if arm.startswith(prefix)
    }
    good = itertools.takewhile(lambda c: compressions[c] >= -0.05, sorted(compressions))
    return max(good, default=None)
