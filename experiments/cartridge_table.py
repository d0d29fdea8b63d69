"""Accuracy by cartridge size, beside every control, on held-out documents of the embedded model.

    python -m experiments.cartridge_table --work=runs/table

Five documents of about 520 tokens, up to 160 questions each; 128, 64, 32 and 16 slots (4x to 32x).
For each: self-study once, then a cartridge of each size, and at 32 slots also one started from
random vectors and one trained on the next token of the text. Then one document of twice the
model's window. About 80 minutes on two CPU cores; stopped and run again, it goes on. The result is
committed as experiments/results/cartridge_table.json.
"""

import dataclasses

from absl import app, flags
from etils import epath

from cartridges_jax import Cartridge, Document, LanguageModel, load_model
from cartridges_jax.distillation.targets import score_targets, text_targets
from cartridges_jax.distillation.train import TrainConfig, train
from cartridges_jax.embedded.documents import GeneratedDocument
from cartridges_jax.evaluation.arms import (
    FULL_CONTEXT,
    FULL_KV,
    NO_CONTEXT,
    TRUNCATED,
    Arm,
    answer,
    cartridge_arm,
    control_arms,
)
from cartridges_jax.evaluation.evaluate import score_answers
from cartridges_jax.evaluation.suites import Question, embedded_questions, held_out_document
from cartridges_jax.self_study.synthesize import SynthesisConfig, synthesize
from experiments.record import write_result

_WORK = flags.DEFINE_string("work", "runs/table", "Folder for data and checkpoints.")
_OUT = flags.DEFINE_string("out", "experiments/results/cartridge_table.json", "Result file.")
_DOCUMENTS = flags.DEFINE_integer("documents", 5, "Held-out documents.")
_QUESTIONS = flags.DEFINE_integer("questions", 160, "Questions for each document.")

SIZES = (128, 64, 32, 16)
BASELINE_SIZE = 32
ANSWER_TOKENS = 96
ANSWER_ROOM = 160  # tokens kept free for a question and its answer
# Chosen on other documents: 2,048 conversations and 400 steps miss some of the facts.
STUDY = SynthesisConfig(num_conversations=6144)
TRAIN = TrainConfig(num_steps=600)
SHORT_TOKENS = 560
LONG_TOKENS = 2048  # twice the embedded model's window
LONG_SLOTS = 128
LONG_STUDY = dataclasses.replace(STUDY, num_conversations=12_288)
LONG_TRAIN = dataclasses.replace(TRAIN, num_steps=1200, num_slots=LONG_SLOTS)


def study(model: LanguageModel, document: Document, folder: epath.Path, config) -> epath.Path:
    synthesize(model, [document], folder, config)
    score_targets(model, folder)
    return folder


def cartridges(
    model: LanguageModel, document: Document, folder: epath.Path
) -> dict[str, Cartridge]:
    """All cartridges of one document, by the name of their arm."""
    data = study(model, document, folder / "data", STUDY)
    text = folder / "text"
    text_targets(model, [document], text, num_rows=1024, min_tokens=64, max_tokens=256)
    base = dataclasses.replace(TRAIN, num_slots=BASELINE_SIZE)
    runs = {f"cartridge {p}": (data, dataclasses.replace(TRAIN, num_slots=p)) for p in SIZES}
    runs["random start"] = (data, dataclasses.replace(base, initializer="random"))
    runs["next token"] = (text, base)
    made = {}
    for name, (source, config) in runs.items():
        made[name] = train(model, [document], source, folder / name.replace(" ", "_"), config)
    return made


def controls(model: LanguageModel, document: Document) -> list[Arm]:
    """No context, full context, full KV, and the text truncated to each size."""
    arms = control_arms(model, [document], SIZES[0], ANSWER_ROOM)
    kept = [arm for arm in arms if arm.name in (NO_CONTEXT, FULL_CONTEXT, FULL_KV)]
    for size in SIZES:
        [cut] = [
            arm
            for arm in control_arms(model, [document], size, ANSWER_ROOM)
            if arm.name == TRUNCATED
        ]
        kept.append(dataclasses.replace(cut, name=f"truncated {size}"))
    return kept


def short_documents(model: LanguageModel, work: epath.Path) -> dict:
    """The table over all documents together."""
    questions: list[Question] = []
    answers: dict[str, list[str]] = {}
    described = []
    for i in range(_DOCUMENTS.value):
        name = f"table {i}"
        document, made = held_out_document(name, SHORT_TOKENS)
        asked = embedded_questions(made, name, _QUESTIONS.value)
        found = cartridges(model, document, work / f"document_{i}")
        arms = controls(model, document)
        arms += [cartridge_arm(cartridge, arm) for arm, cartridge in found.items()]
        texts = [q.question for q in asked]
        for arm in arms:
            answers.setdefault(arm.name, []).extend(answer(model, arm, texts, ANSWER_TOKENS))
        questions += asked
        described.append(describe(model, document, made, len(asked)))
    scores = score_answers(questions, answers, FULL_CONTEXT)
    del scores["answers"]
    mean_tokens = sum(d["tokens"] for d in described) / len(described)
    mean_facts = sum(d["facts"] for d in described) / len(described)
    sizes = {
        f"cartridge {p}": {"compression": mean_tokens / p, "facts_per_slot": mean_facts / p}
        for p in SIZES
    }
    return {"documents": described, "sizes": sizes, **scores}


def describe(
    model: LanguageModel, document: Document, made: GeneratedDocument, num_questions: int
) -> dict:
    context = model.template.render_context(document.title, document.text)
    return {
        "title": document.title,
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
    facts = [f for f in made.facts if f.person in told and f.value in told]
    if not facts:
        raise ValueError(f"no fact belongs to {question.question!r}")
    middle = sum(f.start for f in facts) // len(facts)
    width = len(made.text)
    while True:
        window = made.window(max(0, middle - width // 2), min(len(made.text), middle + width // 2))
        context = model.template.render_context(made.title, window.text)
        if len(context) <= budget:
            return Arm("right part", len(context), tuple(context))
        width = int(width * 0.9)


def long_document(model: LanguageModel, work: epath.Path) -> dict:
    """A document of twice the window: cartridge, truncated text, and the right part alone."""
    document, made = held_out_document("table long", LONG_TOKENS)
    questions = embedded_questions(
        made, "table long", 200, shares={"lookup": 0.6, "reverse": 0.2, "use case": 0.2}
    )
    data = study(model, document, work / "long" / "data", LONG_STUDY)
    cartridge = train(model, [document], data, work / "long" / "cartridge", LONG_TRAIN)
    arms = control_arms(model, [document], LONG_SLOTS, ANSWER_ROOM)
    arms = [arm for arm in arms if arm.name in (NO_CONTEXT, FULL_CONTEXT, TRUNCATED)]
    arms.append(cartridge_arm(cartridge))
    texts = [q.question for q in questions]
    answers = {arm.name: answer(model, arm, texts, ANSWER_TOKENS) for arm in arms}
    answers["right part"] = [
        answer(model, right_part(model, made, q, 500), [q.question], ANSWER_TOKENS)[0]
        for q in questions
    ]
    # Here "full context" is what fits the window: the truncated text at the largest size.
    answers["truncated to the window"] = answers.pop(FULL_CONTEXT)
    answers["truncated to the cartridge's size"] = answers.pop(TRUNCATED)
    scores = score_answers(questions, answers, "truncated to the window")
    del scores["answers"]
    return {"document": describe(model, document, made, len(questions)), **scores}


def main(_) -> None:
    model = load_model("embedded")
    work = epath.Path(_WORK.value)
    table = {
        "settings": {"study": vars(STUDY), "train": vars(TRAIN)},
        "model": model.identity,
        "short_documents": short_documents(model, work),
    }
    write_result(_OUT.value, table)
    table["long_document"] = long_document(model, work)
    write_result(_OUT.value, table)
    for part in ("short_documents", "long_document"):
        print(f"\n{part}")
        for arm, scores in table[part]["accuracy"].items():
            all_, d = scores["all"], scores["difference_to_reference"]
            print(
                f"  {arm:<34} {100 * all_['value']:5.1f} % ({100 * all_['low']:.1f} to "
                f"{100 * all_['high']:.1f}), n={all_['n']}; difference {100 * d['value']:+.1f} "
                f"({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
            )


if __name__ == "__main__":
    app.run(main)
