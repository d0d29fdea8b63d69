"""The held-out documents that are studied, and the settings of the study and the table's trainings.

Both experiments study the same documents with the same settings, so given the same `--work` folder
the second finds what the first has written.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from etils import epath

from cartridges_jax import Document, LanguageModel
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.shards import ShardSet
from experiments.embedded_world.documents import ANSWER_ROOM, held_out_document
from experiments.embedded_world.study import StudyConfig, synthesize
from experiments.embedded_world.world.schema import GeneratedDocument

# The model of this world has learned to ask about a sentence.
EMBEDDED_STUDY = StudyConfig(
    conversations_per_chunk=64,
    chunk_min_tokens=0,
    chunk_max_tokens=0,
    question_temperature=0.8,
    seed_prompts="focused",
    question_share=0.7,
    min_question_confidence=0.55,
    min_answer_confidence=0.98,
    kept_share=0.5,
    skimmed_share=0.1875,
    recall_share=0.125,
)

TOKENS = 1880  # asked of a document; those that leave no room for an answer are passed over
STUDY = dataclasses.replace(EMBEDDED_STUDY, num_conversations=4096)

SIZES = (470, 188, 94, 58)  # 4x, 10x, 20x and 32x
TEMPLATE_SIZES = (94, 58)
BASELINE_SIZE = 94
TRAIN = TrainConfig(num_steps=1600, learning_rate=5e-2)
# Questions by template are about what the chunk says or does not say in the shares of the test.
TEMPLATE_STUDY = dataclasses.replace(STUDY, kept_share=1.0, skimmed_share=0.0, recall_share=0.0)
# Data and settings of each training, by the name of its arm.
RUNS = {
    **{f"cartridge {p}": ("data", dataclasses.replace(TRAIN, num_slots=p)) for p in SIZES},
    **{
        f"templates {p}": ("templates", dataclasses.replace(TRAIN, num_slots=p))
        for p in TEMPLATE_SIZES
    },
    "random vectors": (
        "data",
        dataclasses.replace(TRAIN, num_slots=BASELINE_SIZE, initializer="random"),
    ),
    "next token": ("text", dataclasses.replace(TRAIN, num_slots=BASELINE_SIZE)),
}
TEXT_ROWS: dict[str, Any] = {"num_rows": 1024, "min_tokens": 64, "max_tokens": 256}
SETTINGS = {
    "study": vars(STUDY),
    "template_study": vars(TEMPLATE_STUDY),
    "text": TEXT_ROWS,
    "runs": {name: {"data": data, **vars(config)} for name, (data, config) in RUNS.items()},
}


def fitting_documents(
    model: LanguageModel, count: int
) -> Iterator[tuple[str, Document, GeneratedDocument]]:
    """Documents that fit the window together with a question and its answer."""
    names = (f"table {i}" for i in itertools.count())
    while count:
        name = next(names)
        document, made = held_out_document(name, TOKENS)
        context = model.template.render_context(document.title, document.text)
        if len(context) + ANSWER_ROOM <= model.config.window:
            count -= 1
            yield name, document, made


def work_folder(work: str, model: LanguageModel) -> epath.Path:
    """Where what belongs to these weights stands."""
    return epath.Path(work) / model.fingerprint["weights"][:12]


def own_questions(
    model: LanguageModel, document: Document, work: epath.Path, index: int
) -> tuple[ShardSet, epath.Path]:
    """Self-study of document `index`, begun or found; with its folder."""
    folder = work / f"document_{index}" / "data"
    return synthesize(model, [document], folder, STUDY), folder
