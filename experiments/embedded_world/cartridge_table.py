"""Accuracy by cartridge size, beside every control, on held-out documents of the embedded world.

    python -m experiments.embedded_world.cartridge_table

Five documents of about 1,900 tokens, 74 to 89 questions each; each cartridge trained once. For
each document: self-study once with the model's own questions and once with right ones by template,
then a cartridge of each size, started from the text's first tokens; of 20x less also one started
from random vectors and one trained on the next token of the text. Then one document of twice the
model's window. Some five hours on two CPU cores. What every arm answered is committed in
experiments/results/embedded_world/cartridge_answers/, one file a document, and is not asked again
where an arm's settings, text and questions are the same; the table made of all of them is
cartridge_table.json beside it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from etils import epath

from cartridges_jax import Cartridge, Document, LanguageModel, load_model
from cartridges_jax.config import digest
from cartridges_jax.distillation.targets import score_targets
from cartridges_jax.distillation.train import train
from cartridges_jax.evaluation.arms import (
    FULL_CONTEXT,
    FULL_KV,
    NO_CONTEXT,
    TRUNCATED,
    Arm,
    answer,
    cartridge_arm,
    control_arms,
    truncated_arm,
)
from cartridges_jax.evaluation.questions import Question
from experiments.embedded_world.documents import (
    ANSWER_ROOM,
    ANSWER_TOKENS,
    MODEL,
    embedded_questions,
    held_out_document,
)
from experiments.embedded_world.studied_documents import (
    RUNS,
    SETTINGS,
    SIZES,
    STUDY,
    TEMPLATE_STUDY,
    TEXT_ROWS,
    TRAIN,
    fitting_documents,
    own_questions,
    work_folder,
)
from experiments.embedded_world.study import synthesize
from experiments.embedded_world.table_summary import scored, short_documents, still_valid
from experiments.embedded_world.template_questions import TemplateClient
from experiments.embedded_world.text_rows import text_targets
from experiments.embedded_world.world.schema import GeneratedDocument
from experiments.record import found_or_made, write_result

_WORK = flags.DEFINE_string("work", "runs/table", "Folder for data and checkpoints.")
_OUT = flags.DEFINE_string(
    "out", "experiments/results/embedded_world/cartridge_table.json", "Result file."
)
_ANSWERS = flags.DEFINE_string(
    "answers", "experiments/results/embedded_world/cartridge_answers", "Folder of all answers."
)
_DOCUMENTS = flags.DEFINE_integer("documents", 5, "Held-out documents.", 1)
_LONG = flags.DEFINE_boolean("long", True, "Also a document of twice the model's window.")
_ONLY = flags.DEFINE_integer(
    "only",
    None,
    "Only what is asked about this document, counted from 0, and no table: for several processes "
    "on one accelerator, each with a document of its own. --documents and --long are not used.",
    0,
)

QUESTIONS = 120  # asked for; a type of which a document has fewer gives fewer

LONG_TOKENS = 4000  # twice the embedded model's window
LONG_SLOTS = 200  # 20x
LONG_QUESTIONS = 200
LONG_SHARES = {"lookup": 0.6, "reverse": 0.2, "use case": 0.2}  # one fact each
RIGHT_PART_TOKENS = 500
LONG_STUDY = dataclasses.replace(STUDY, num_conversations=8192)
LONG_TRAIN = dataclasses.replace(TRAIN, num_steps=3200, num_slots=LONG_SLOTS)
WINDOW = "truncated to the window"


def trained(
    model: LanguageModel,
    document: Document,
    made: GeneratedDocument,
    work: epath.Path,
    index: int,
    name: str,
) -> Cartridge:
    """The cartridge of document `index` that `RUNS` calls `name`, with the data it needs."""
    source, config = RUNS[name]
    folder = work / f"document_{index}"
    match source:
        case "data":
            own_questions(model, document, work, index)
        case "templates":
            client = TemplateClient(model, made)
            synthesize(model, [document], folder / source, TEMPLATE_STUDY, client)
        case "text":
            text_targets(model, [document], folder / source, **TEXT_ROWS)
    return train(model, [document], folder / source, folder / name.replace(" ", "_"), config)


def controls(model: LanguageModel, document: Document) -> list[Arm]:
    """No context, full context, full KV, and the text truncated to each size."""
    arms = control_arms(model, [document], SIZES[0], ANSWER_ROOM)
    kept = [arm for arm in arms if arm.name in (NO_CONTEXT, FULL_CONTEXT, FULL_KV)]
    return kept + [truncated_arm(model, [document], p, f"truncated {p}") for p in SIZES]


def answers_about(
    model: LanguageModel,
    document: Document,
    made: GeneratedDocument,
    questions: Sequence[Question],
    work: epath.Path,
    index: int,
    made_with: dict[str, Any],
    earlier: dict[str, Any],
) -> dict[str, Any]:
    """What every arm answers to every question about one document.

    What stands in `earlier` and is still valid is not asked again.
    """
    texts = [q.question for q in questions]
    kept = still_valid(earlier, made_with)
    answers, tokens = {}, {}
    for arm in controls(model, document):
        tokens[arm.name] = arm.num_tokens
        answers[arm.name] = kept.get(arm.name) or answer(model, arm, texts, ANSWER_TOKENS)
    for name, (_, config) in RUNS.items():
        tokens[name] = config.num_slots
        if name in kept:
            answers[name] = kept[name]
        else:
            arm = cartridge_arm(trained(model, document, made, work, index, name), name)
            answers[name] = answer(model, arm, texts, ANSWER_TOKENS)
    return {
        "document": describe(model, document, made, len(questions)),
        "questions": [dataclasses.asdict(q) for q in questions],
        "tokens": tokens,
        "answers": answers,
        "kept": {"arms": list(kept), "made": earlier["made"]} if kept else {},
    }


def describe(
    model: LanguageModel, document: Document, made: GeneratedDocument, num_questions: int
) -> dict:
    context = model.template.render_context(document.title, document.text)
    return {
        "title": document.title,
        "genre": made.genre.name,
        "tokens": len(context),
        "facts": len(made.facts),
        "questions": num_questions,
    }


def right_part(
    model: LanguageModel, made: GeneratedDocument, question: Question, budget: int
) -> Arm:
    """The part of the text that holds the answer, as far as it fits the window.

    Raises:
      ValueError: if no fact of the document belongs to the question.
    """
    told = question.question + question.answers[0]
    facts = [f for f in made.facts.values() if f.thing in told and f.value in told]
    if not facts:
        raise ValueError(f"no fact belongs to {question.question!r}")
    middle = sum(f.span.start for f in facts) // len(facts)
    width = len(made.text)
    while True:
        window = made.window(max(0, middle - width // 2), min(len(made.text), middle + width // 2))
        context = model.template.render_context(made.title, window.text)
        if len(context) <= budget:
            return Arm("right part", len(context), tuple(context))
        width = int(width * 0.9)


def long_answers(
    model: LanguageModel,
    document: Document,
    made: GeneratedDocument,
    questions: Sequence[Question],
    work: epath.Path,
    _: dict[str, Any],
) -> dict[str, Any]:
    """A document of twice the window: cartridge, truncated text, and the right part alone."""
    data = work / "long" / "data"
    synthesize(model, [document], data, LONG_STUDY)
    score_targets(model, data)
    cartridge = train(model, [document], data, work / "long" / "cartridge", LONG_TRAIN)
    arms = control_arms(model, [document], LONG_SLOTS, ANSWER_ROOM)
    arms = [arm for arm in arms if arm.name in (NO_CONTEXT, FULL_CONTEXT, TRUNCATED)]
    arms.append(cartridge_arm(cartridge))
    texts = [q.question for q in questions]
    answers = {arm.name: answer(model, arm, texts, ANSWER_TOKENS) for arm in arms}
    answers["right part"] = [
        answer(model, right_part(model, made, q, RIGHT_PART_TOKENS), [q.question], ANSWER_TOKENS)[0]
        for q in questions
    ]
    # Here "full context" is what fits the window: the truncated text at the largest size.
    answers[WINDOW] = answers.pop(FULL_CONTEXT)
    answers["truncated to the cartridge's size"] = answers.pop(TRUNCATED)
    return {
        "document": describe(model, document, made, len(questions)),
        "questions": [dataclasses.asdict(q) for q in questions],
        "answers": answers,
    }


def asked_about(document: Document, questions: Sequence[Question]) -> dict[str, Any]:
    """What answers are about: with another text or other questions they are asked for anew."""
    return {
        "document": document.sha256,
        "questions": digest([dataclasses.asdict(q) for q in questions]),
        "room": [ANSWER_TOKENS, ANSWER_ROOM],
    }


def main(_) -> None:
    model = load_model(MODEL)
    work = work_folder(_WORK.value, model)
    folder = epath.Path(_ANSWERS.value)
    settings = {"model": model.identity, **SETTINGS}
    parts = []
    only = _ONLY.value
    count = _DOCUMENTS.value if only is None else only + 1
    documents = list(enumerate(fitting_documents(model, count)))
    for i, (name, document, made) in documents[only:]:
        questions = embedded_questions(made, name, QUESTIONS)
        with_ = settings | asked_about(document, questions)
        make = functools.partial(answers_about, model, document, made, questions, work, i, with_)
        parts.append(found_or_made(folder / f"document_{i}.json", with_, make))
        table = {"made_with": settings, "short_documents": short_documents(parts)}
        print_table(table["short_documents"])
    if only is not None:
        return
    if _LONG.value:
        document, made = held_out_document("table long", LONG_TOKENS)
        questions = embedded_questions(made, "table long", LONG_QUESTIONS, shares=LONG_SHARES)
        make = functools.partial(long_answers, model, document, made, questions, work)
        long = {"model": model.identity, "study": vars(LONG_STUDY), "train": vars(LONG_TRAIN)}
        with_ = long | asked_about(document, questions) | {"right_part": RIGHT_PART_TOKENS}
        part = found_or_made(folder / "long.json", with_, make)
        table["long_document"] = {"document": part["document"], **scored([part], WINDOW)}
        print_table(table["long_document"])
    write_result(_OUT.value, table)


def print_table(part: dict[str, Any]) -> None:
    """Accuracy of every arm, for who waits for the rest."""
    for arm, scores in part["accuracy"].items():
        all_, d = scores["all"], scores["difference_to_reference"]
        print(
            f"  {arm:<34} {100 * all_['value']:5.1f} % ({100 * all_['low']:.1f} to "
            f"{100 * all_['high']:.1f}), n={all_['n']}; difference {100 * d['value']:+.1f} "
            f"({100 * d['low']:+.1f} to {100 * d['high']:+.1f})",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
