"""How well the model of this world reads: accuracy by question type on held-out documents.

    python -m experiments.embedded_world.scores --work=runs/scores

Documents that training never saw, in wordings that nothing was tuned on: of 500, 1,000 and 1,900
tokens, of a genre that training has not (once as it is, once in words that training has), and of
other lengths for the length curve; each question with the document in the context, those about 500
tokens without it too. Documents are drawn until there are 400 questions of every type. Stopped and
run again, it goes on. The result is committed in experiments/results/embedded_world/; the card
quotes it.
"""

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from etils import epath

from cartridges_jax import LanguageModel, files, load_model
from cartridges_jax.evaluation.arms import Arm, answer
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.metrics import progress
from experiments.embedded_world import documents
from experiments.embedded_world.documents import (
    ANSWER_ROOM,
    ANSWER_TOKENS,
    MODEL,
    embedded_questions,
    held_out_document,
)
from experiments.embedded_world.type_scores import FULL, NONE, scores_of
from experiments.embedded_world.world import asking, genres
from experiments.record import files_digest, write_result

_WORK = flags.DEFINE_string("work", "runs/scores", "Folder of answers by document.")
_WANTED = flags.DEFINE_integer("wanted", 400, "Questions of each type in each set.", 1)
_DOCUMENTS = flags.DEFINE_integer(
    "documents", 800, "Most documents of a set; some types of questions are rare.", 1
)
_OUT = flags.DEFINE_string("out", "experiments/results/embedded_world/scores.json", "Result file.")

GROUP = 64  # questions answered together
PER_DOCUMENT = 12  # most questions of a type about one document
CURVE_KINDS = ("lookup", "reverse", "quote")


@dataclasses.dataclass(frozen=True)
class Set:
    """Documents of one length and kind, and what is asked about them."""

    name: str
    tokens: int
    genre: str | None = None
    kinds: tuple[str, ...] = asking.KINDS
    without: bool = False  # whether its questions are asked without their document too


NO_CALLS = tuple(kind for kind in asking.KINDS if kind != "calls")  # code alone has them
SETS = (
    Set("500", 500, without=True),
    Set("1000", 1000),
    Set("1900", 1900),
    Set("held-out genre, 1000", 1000, genres.MUSEUM.name, NO_CALLS),
    Set("known words, 1000", 1000, genres.MUSEUM_IN_KNOWN_WORDS.name, NO_CALLS),
    *(Set(f"curve {n}", n, kinds=CURVE_KINDS) for n in (250, 750, 1400)),
)
_ONLY = flags.DEFINE_multi_enum(
    "only", [], [part.name for part in SETS], "Sets to answer now, without a result; none: all."
)


def sources_digest() -> str:
    """Of what decides which questions there are: answers kept from before belong to the same."""
    world = sorted(epath.Path(asking.__file__).parent.glob("*.py"))
    return files_digest(*world, epath.Path(documents.__file__), epath.Path(__file__))[:8]


def _answers(model: LanguageModel, arm: Arm, asked: Sequence[Question]) -> list[str]:
    """Greedy answers, in groups that end about together and have few sizes."""
    found: dict[str, str] = {}
    ordered = [q.question for q in sorted(asked, key=lambda q: len(q.answers[0]))]
    for start in range(0, len(ordered), GROUP):
        group = ordered[start : start + GROUP]
        size = 1 << (len(group) - 1).bit_length()
        padded = group + group[-1:] * (size - len(group))
        found |= zip(padded, answer(model, arm, padded, ANSWER_TOKENS), strict=True)
    return [found[q.question] for q in asked]


def of_document(
    model: LanguageModel, part: Set, index: int, kinds: Sequence[str]
) -> dict[str, Any] | None:
    """Questions of some kinds about one document, with both answers; None where it is too long."""
    name = f"scores {part.name} {index}"
    document, made = held_out_document(name, part.tokens, part.genre)
    context = model.template.render_context(document.title, document.text)
    if len(context) > model.config.window - ANSWER_ROOM:
        return None
    many = dict.fromkeys(kinds, 1.0)
    asked = embedded_questions(made, name, PER_DOCUMENT * len(many), shares=many)
    if not asked:
        return None
    arms = [Arm(FULL, len(context), prefix=model.read(context))]
    if part.without:
        empty = model.template.empty_context()
        arms.append(Arm(NONE, len(empty), tuple(empty)))
    return {
        "tokens": len(context),
        "facts": len(made.facts),
        "questions": [dataclasses.asdict(q) for q in asked],
        "answers": {arm.name: _answers(model, arm, asked) for arm in arms},
    }


def answers_of(model: LanguageModel, part: Set, work: epath.Path) -> list[dict[str, Any]]:
    """All documents of a set, until each type has enough questions or luck runs out."""
    found: list[dict[str, Any]] = []
    counts: collections.Counter[str] = collections.Counter()
    bar = progress(_WANTED.value, part.name, "of the rarest type")
    for index in range(_DOCUMENTS.value):
        lacking = [kind for kind in part.kinds if counts[kind] < _WANTED.value]
        if not lacking:
            break
        file = work / f"{part.name.replace(', ', '_').replace(' ', '_')}-{index}.json"
        if file.exists():
            one = json.loads(file.read_text())
        else:
            one = of_document(model, part, index, lacking)
            files.write_json(file, one)
        if one is None:
            continue
        found.append(one)
        counts.update(q["type"] for q in one["questions"])
        least = min(counts[kind] for kind in part.kinds)
        bar.update(min(least, _WANTED.value) - bar.n)
    bar.close()
    return found


def main(_) -> None:
    model = load_model(MODEL)
    name = f"{model.fingerprint['weights'][:12]}-{_WANTED.value}-{sources_digest()}"
    work = files.output_folder(epath.Path(_WORK.value) / name)
    if _ONLY.value:
        for part in SETS:
            if part.name in _ONLY.value:
                answers_of(model, part, work)
        return
    found = {part.name: scores_of(answers_of(model, part, work), _WANTED.value) for part in SETS}
    write_result(_OUT.value, {"model": model.identity, "sets": found})
    for name, scores in found.items():
        print(f"\n{name}: {scores['documents']} documents")
        for kind, of in scores["types"].items():
            shares = ", ".join(
                f"{arm} {100 * of[arm]['value']:.1f} % "
                f"({100 * of[arm]['low']:.1f} to {100 * of[arm]['high']:.1f})"
                for arm in (FULL, NONE)
                if arm in of
            )
            print(f"  {kind:<10} n={of[FULL]['n']:<4} {shares}, chance {100 * of['chance']:.1f} %")
            if "conclusion" in of:
                both = " and ".join(f"{100 * x['value']:.1f}" for x in of["conclusion"].values())
                print(f"  {'':<10} conclusion alone {both} %")
        if "absent" in scores:
            print(f"  told what is not in the text, balanced: {scores['absent']['balanced']:.3f}")


if __name__ == "__main__":
    app.run(main)
