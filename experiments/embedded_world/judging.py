"""What the ground truth of a document says of conversations about it."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from cartridges_jax.evaluation.scoring import is_right, wilson
from cartridges_jax.self_study.conversation import Conversation
from experiments.embedded_world.documents import parser_of
from experiments.embedded_world.prompts import SKIMMED
from experiments.embedded_world.world.schema import GeneratedDocument
from experiments.embedded_world.world.understanding import understand

JUDGED = 1000  # conversations of each document, by who has read the chunk


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the ground truth says of one conversation."""

    about: tuple[str, int, int]  # question and chunk
    answer: str
    family: str
    kind: str  # of question; empty where the chunk gives no answer
    right: bool
    facts: tuple[tuple[str, str], ...]


def judge(shown: GeneratedDocument, one: Conversation) -> Judgement:
    """Compares a conversation with what its chunk says, which is `shown`."""
    question, answer = (message["content"] for message in one.messages[:2])
    turn = understand(shown, question)
    about = (question, one.chunk.start, one.chunk.end)
    if turn is None:
        return Judgement(about, answer, one.family, "", False, ())
    right = is_right(answer, (turn.answer,), parser_of(turn))
    return Judgement(about, answer, one.family, turn.kind, right, turn.facts)


def summary_of(made: GeneratedDocument, judged: Sequence[Judgement]) -> dict[str, Any]:
    """The four figures, with what went wrong most."""
    first = [j for j in judged if j.family != SKIMMED][:JUDGED]
    skimmed = [j for j in judged if j.family == SKIMMED]
    refused = [j for j in skimmed if "not in the text" in j.answer]
    wrongly = [j for j in refused if understand(made, j.about[0])]
    valid = [j for j in first if j.kind]
    different = {j.about: j for j in valid}.values()  # the same again is no new evidence
    asked = {fact for j in judged for fact in j.facts}
    families = collections.Counter(j.family for j in first)
    valid_families = collections.Counter(j.family for j in valid)
    return {
        "valid": wilson(len(valid), len(first)).as_json(),
        "right": wilson(sum(j.right for j in different), len(different)).as_json(),
        "distinct": len({j.about[0] for j in first}) / len(first),
        "facts": len(made.facts),
        "covered": len(asked & set(made.facts)) / len(made.facts),
        "conversations": len(judged),
        "valid_of_all": wilson(sum(bool(j.kind) for j in judged), len(judged)).as_json(),
        "skimmed": {
            "conversations": len(skimmed),
            "answered with not in the text": len(refused),
            "though elsewhere in the text": len(wrongly),
        },
        "kinds": dict(collections.Counter(j.kind for j in valid).most_common()),
        "valid_by_family": {f: valid_families[f] / n for f, n in sorted(families.items())},
        "not_valid": [f"{j.about[0]} / {j.answer}" for j in first if not j.kind][:20],
        "missed": [" / ".join(fact) for fact in sorted(set(made.facts) - asked)][:20],
    }
