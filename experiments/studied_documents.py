"""The held-out documents that the model's own questions and the cartridge table are measured on.

Both experiments study the same documents with the same settings, so given the same `--work` folder
the second finds what the first has written.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from etils import epath

from cartridges_jax import Document, LanguageModel
from cartridges_jax.embedded.world.schema import GeneratedDocument
from cartridges_jax.evaluation.suites import ANSWER_ROOM, held_out_document
from cartridges_jax.self_study.synthesize import EMBEDDED_STUDY, synthesize
from cartridges_jax.shards import ShardSet

TOKENS = 1880  # asked of a document; those that leave no room for an answer are passed over
STUDY = dataclasses.replace(EMBEDDED_STUDY, num_conversations=2048)


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
