"""Accuracy by cartridge size, beside every control, on held-out documents of the embedded model.

    python -m experiments.cartridge_table --work=runs/table

Five documents of about 1,900 tokens, up to 120 questions each; 128 to 62 slots (15x to 30x), each
trained once. For each document: self-study once with the model's own questions and once with right
ones by template, then a cartridge of each size; at 94 slots (20x) also one started from random
vectors and one trained on the next token of the text. Then one document of twice the model's
window. Some three hours on two CPU cores; stopped and run again, it goes on. The result is
committed as experiments/results/cartridge_table.json.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from etils import epath

from cartridges_jax import Cartridge, Document, LanguageModel, load_model
from cartridges_jax.corpus import Chunk
from cartridges_jax.distillation.targets import score_targets, text_targets
from cartridges_jax.distillation.train import TrainConfig, train
from cartridges_jax.embedded.world import asking
from cartridges_jax.embedded.world.schema import GeneratedDocument
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
from cartridges_jax.evaluation.suites import (
    ANSWER_ROOM,
    ANSWER_TOKENS,
    Question,
    embedded_questions,
    held_out_document,
    shown_part,
)
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.clients import LocalClient, LocalReader, Reply
from cartridges_jax.self_study.synthesize import synthesize
from experiments.record import write_result
from experiments.studied_documents import STUDY, fitting_documents, own_questions, work_folder

_WORK = flags.DEFINE_string("work", "runs/table", "Folder for data and checkpoints.")
_OUT = flags.DEFINE_string("out", "experiments/results/cartridge_table.json", "Result file.")
_DOCUMENTS = flags.DEFINE_integer("documents", 5, "Held-out documents.", 1)
_QUESTIONS = flags.DEFINE_integer("questions", 120, "Questions for each document.", 1)

SIZES = (128, 94, 62)
TEMPLATE_SIZES = (94, 62)
BASELINE_SIZE = 94
TEMPLATE_TRIES = 20  # for a question about a chunk; some chunks have nothing to ask about
TRAIN = TrainConfig(num_steps=800)
LONG_TOKENS = 4000  # twice the embedded model's window
LONG_SLOTS = 128
LONG_STUDY = dataclasses.replace(STUDY, num_conversations=4096)
LONG_TRAIN = dataclasses.replace(TRAIN, num_steps=1600, num_slots=LONG_SLOTS)


class TemplateClient:
    """Asks what the ground truth can answer, in the wordings of training; the model answers.

    What better questions would be worth: everything else is as in self-study.
    """

    def __init__(self, model: LanguageModel, made: GeneratedDocument):
        self._made = dataclasses.replace(made, split="train")
        self._tokenizer = model.template.tokenizer
        self._token_ids = self._tokenizer.encode(made.text)
        self._local = LocalClient(model, STUDY.conversations_per_chunk)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._local.fingerprint | {"questions": "by template"}

    def read(self, chunk: Chunk | None) -> "TemplateReader | LocalReader":
        if chunk is None:
            return self._local.read(None)
        shown = shown_part(self._made, chunk, self._tokenizer, self._token_ids)
        # What only another chunk says is not missing from the text.
        shown = dataclasses.replace(shown, unstated=self._made.unstated)
        return TemplateReader(self._made, shown, self._local.read(chunk))


class TemplateReader:
    """One chunk: the first call asks, the second answers."""

    def __init__(self, made: GeneratedDocument, shown: GeneratedDocument, local: LocalReader):
        self._shown, self._local, self._has_asked = shown, local, False
        # Facts that the text corrects elsewhere are not asked for.
        self._known = {f for f, s in shown.facts.items() if made.facts[f].value == s.value}

    def complete(
        self,
        requests: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
    ) -> list[Reply | None]:
        if self._has_asked:
            return self._local.complete(
                requests, temperature=temperature, max_new_tokens=max_new_tokens, seeds=seeds
            )
        self._has_asked = True
        turns = [self._draw(random.Random(seed)) for seed in seeds]
        return [Reply(turn.question, 1.0) if turn else None for turn in turns]

    def _draw(self, rng: random.Random) -> asking.Turn | None:
        for _ in range(TEMPLATE_TRIES):
            turn = asking.draw_turn(rng, self._shown)
            if turn and self._known.issuperset(turn.facts):
                return turn
        return None


def cartridges(
    model: LanguageModel, document: Document, made: GeneratedDocument, work: epath.Path, index: int
) -> dict[str, Cartridge]:
    """All cartridges of one document, by the name of their arm."""
    _, data = own_questions(model, document, work, index)
    folder = data.parent
    asked, text = folder / "templates", folder / "text"
    synthesize(model, [document], asked, STUDY, TemplateClient(model, made))
    score_targets(model, data)
    score_targets(model, asked)
    text_targets(model, [document], text, num_rows=1024, min_tokens=64, max_tokens=256)
    base = dataclasses.replace(TRAIN, num_slots=BASELINE_SIZE)
    runs = {f"cartridge {p}": (data, dataclasses.replace(TRAIN, num_slots=p)) for p in SIZES}
    for p in TEMPLATE_SIZES:
        runs[f"templates {p}"] = (asked, dataclasses.replace(TRAIN, num_slots=p))
    runs["random start"] = (data, dataclasses.replace(base, initializer="random"))
    runs["next token"] = (text, base)
    found = {}
    for name, (source, config) in runs.items():
        found[name] = train(model, [document], source, folder / name.replace(" ", "_"), config)
    return found


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


def largest_within(scores: dict[str, Any], sizes: dict[str, Any], prefix: str) -> float | None:
    """The largest compression whose difference to full context is surely above -5 points."""
    good = [
        sizes[f"cartridge {arm.split()[-1]}"]["compression"]
        for arm, of in scores["accuracy"].items()
        if arm.startswith(prefix) and of["difference_to_reference"]["low"] >= -0.05
    ]
    return max(good, default=None)


def short_documents(model: LanguageModel, work: epath.Path) -> dict:
    """The table over all documents together."""
    questions: list[Question] = []
    answers: dict[str, list[str]] = {}
    described, by_document = [], []
    for i, (name, document, made) in enumerate(fitting_documents(model, _DOCUMENTS.value)):
        asked = embedded_questions(made, name, _QUESTIONS.value)
        found = cartridges(model, document, made, work, i)
        arms = controls(model, document)
        arms += [cartridge_arm(cartridge, arm) for arm, cartridge in found.items()]
        texts = [q.question for q in asked]
        given = {arm.name: answer(model, arm, texts, ANSWER_TOKENS) for arm in arms}
        for arm, found_here in given.items():
            answers.setdefault(arm, []).extend(found_here)
        alone = score_answers(asked, given, FULL_CONTEXT)["accuracy"]
        by_document.append({arm: of["difference_to_reference"] for arm, of in alone.items()})
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
    largest = {
        "own questions": largest_within(scores, sizes, "cartridge "),
        "template questions": largest_within(scores, sizes, "templates "),
    }
    return {
        "documents": described, "sizes": sizes, "baseline_slots": BASELINE_SIZE,
        "largest_within_5_points": largest, "differences_by_document": by_document, **scores,
    }  # fmt: skip


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


def long_document(model: LanguageModel, work: epath.Path) -> dict:
    """A document of twice the window: cartridge, truncated text, and the right part alone."""
    document, made = held_out_document("table long", LONG_TOKENS)
    questions = embedded_questions(
        made, "table long", 200, shares={"lookup": 0.6, "reverse": 0.2, "use case": 0.2}
    )
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
    work = work_folder(_WORK.value, model)
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
