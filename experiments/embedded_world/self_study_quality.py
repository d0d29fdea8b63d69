"""How good the embedded model's own questions and answers are, by the ground truth of its texts.

    python -m experiments.embedded_world.self_study_quality

Self-study of documents of 1,900 tokens, the very ones that the cartridges of the table are trained
on (`studied_documents.py`).
Of the first 1,000 questions by who has read the chunk: how many can be answered from it, how many
are different, how many answers to the answerable ones are right; of all 2,000: how many of the
document's facts they are about. Questions by who has skimmed the chunk (`--skimmed_share`) often
have no answer in it, and are counted apart. And the model's speed: tokens a second in decoding and
in scoring. The result is committed as experiments/results/embedded_world/self_study_quality.json.
"""

import shutil
import tempfile
import time
from typing import Any

from absl import app, flags
from etils import epath

from cartridges_jax import Document, LanguageModel, load_model
from cartridges_jax.distillation.targets import score_targets
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.evaluation.speed import decode_rate
from cartridges_jax.self_study.conversation import load_conversations
from experiments.embedded_world.documents import MODEL, shown_part
from experiments.embedded_world.judging import judge, summary_of
from experiments.embedded_world.prompts import RECALL
from experiments.embedded_world.studied_documents import (
    STUDY,
    TOKENS,
    fitting_documents,
    own_questions,
    work_folder,
)
from experiments.record import write_result

_WORK = flags.DEFINE_string("work", "runs/table", "Folder of conversations.")
_DOCUMENTS = flags.DEFINE_integer("documents", 3, "Held-out documents.", 1)
_OUT = flags.DEFINE_string(
    "out", "experiments/results/embedded_world/self_study_quality.json", "Result file."
)

COVERING = 2000  # conversations of each document that ask about its facts


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
            tokens = score_targets(model, copy).total("row_tokens")
            scored.append(tokens / (time.perf_counter() - started))
    return {"decode": decode_rate(model, arm, 32), "scoring": scored[-1]}


def main(_) -> None:
    model = load_model(MODEL)
    work = work_folder(_WORK.value, model)
    found: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for i, (name, document, made) in enumerate(fitting_documents(model, _DOCUMENTS.value)):
        shards, data = own_questions(model, document, work, i)
        told = [one for index in sorted(shards.units) for one in load_conversations(shards, index)]
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
