"""How good the embedded model's own questions and answers are, by the ground truth of its texts.

    python -m experiments.self_study_quality

Self-study of documents of 1,900 tokens, the very ones that the cartridges of the table are trained
on (`studied_documents.py`).
Of the first 1,000 questions by who has read the chunk: how many can be answered from it, how many
are different, how many answers to the answerable ones are right; of all 2,000: how many of the
document's facts they are about. Questions by who has skimmed the chunk (`--skimmed_share`) often
have no answer in it, and are counted apart. And the model's speed: tokens a second in decoding and
in scoring. The result is committed as experiments/results/self_study_quality.json.
"""

import collections
import dataclasses
import shutil
import tempfile
import time
from typing import Any

from absl import app, flags
from etils import epath

from cartridges_jax import Document, LanguageModel, load_model
from cartridges_jax.distillation.targets import score_targets
from cartridges_jax.embedded.world.schema import GeneratedDocument
from cartridges_jax.embedded.world.understanding import understand
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.evaluation.evaluate import decode_rate
from cartridges_jax.evaluation.scoring import is_right, wilson
from cartridges_jax.evaluation.suites import parser_of, shown_part
from cartridges_jax.self_study.conversation import Conversation
from cartridges_jax.self_study.prompts import RECALL, SKIMMED
from cartridges_jax.self_study.synthesize import load_conversations
from experiments.record import write_result
from experiments.studied_documents import (
    STUDY,
    TOKENS,
    fitting_documents,
    own_questions,
    work_folder,
)

_WORK = flags.DEFINE_string("work", "runs/table", "Folder of conversations.")
_DOCUMENTS = flags.DEFINE_integer("documents", 3, "Held-out documents.", 1)
_OUT = flags.DEFINE_string("out", "experiments/results/self_study_quality.json", "Result file.")

JUDGED, COVERING = 1000, 2000  # conversations of each document: judged; asked about its facts


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


def summary_of(made: GeneratedDocument, judged: list[Judgement]) -> dict[str, Any]:
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


def speed(model: LanguageModel, document: Document, data: epath.Path) -> dict[str, Any]:
    """Tokens a second: of answers to 32 rows about one document, and of scored conversations."""
    context = model.template.render_context(document.title, document.text)
    arm = Arm("full context", len(context), prefix=model.read(context))
    scored = []
    for _ in range(2):  # the first also compiles
        with tempfile.TemporaryDirectory() as folder:
            unscored = shutil.ignore_patterns("targets*")
            copy = shutil.copytree(data, epath.Path(folder) / "data", ignore=unscored)
            started = time.perf_counter()
            tokens = score_targets(model, copy).total("tokens")
            scored.append(tokens / (time.perf_counter() - started))
    return {"decode": decode_rate(model, arm, 32), "scoring": scored[-1]}


def main(_) -> None:
    model = load_model("embedded")
    work = work_folder(_WORK.value, model)
    found: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for i, (name, document, made) in enumerate(fitting_documents(model, _DOCUMENTS.value)):
        shards, data = own_questions(model, document, work, i)
        told = [one for index in sorted(shards.shards) for one in load_conversations(shards, index)]
        told = [one for one in told if one.family != RECALL][:COVERING]
        dropped = shards.total("dropped")
        rates = rates or speed(model, document, data)
        tokenizer, ids = model.template.tokenizer, model.template.tokenizer.encode(made.text)
        judged = [judge(shown_part(made, c.chunk, tokenizer, ids), c) for c in told]
        scores = summary_of(made, judged)
        found[name] = scores | {"genre": made.genre.name, "dropped": dropped}
        print(
            f"{made.genre.name}: valid {scores['valid']['value']:.3f}, right "
            f"{scores['right']['value']:.3f}, distinct {scores['distinct']:.3f}, facts covered "
            f"{scores['covered']:.3f} of {scores['facts']}",
            flush=True,
        )
    study = vars(STUDY) | {"tokens": TOKENS}
    write_result(
        _OUT.value,
        {"model": model.identity, "study": study, "speed": rates, "documents": found},
    )


if __name__ == "__main__":
    app.run(main)
