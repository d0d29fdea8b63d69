"""Training rows of the embedded model: a document as context, then questions with right answers.

Row `index` of a phase depends only on (seed, phase, index), so training resumes exactly and reads
no file. Loss weights: text of the document 0.1, questions 0.2, answers 1.0, messages written for a
seed prompt 0.5; in a fact stream 1.0 on words that were stated before, 0.1 elsewhere.
"""

import dataclasses
import random

import numpy as np

from cartridges_jax.embedded import documents
from cartridges_jax.embedded.documents import GeneratedDocument, Turn
from cartridges_jax.models.chat_template import ChatTemplate, Message

WEIGHT_TEXT, WEIGHT_QUESTION, WEIGHT_ANSWER, WEIGHT_ASKED = 0.1, 0.2, 1.0, 0.5
TOKENS_PER_PERSON = 60  # with fillers, measured
WINDOW_SHARE = 0.5  # rows whose context begins and ends anywhere in a text, as chunks do
ASK_FIRST_SHARE = 0.35  # conversations that open with a seed prompt, as bot A's do
ASK_SHARE = 0.06  # of the later turns


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training at one row length."""

    row_length: int  # tokens
    num_tokens: int
    stream_share: float  # rows that are fact streams instead of conversations


PHASES = (
    Phase(192, 1_500_000, 0.50),
    Phase(256, 3_000_000, 0.25),
    Phase(512, 14_000_000, 0.08),
    Phase(1024, 10_000_000, 0.03),
)


class RowBuilder:
    """Collects token ids with the weight of *predicting* each, up to a row's length."""

    def __init__(self, row_length: int):
        self.row_length = row_length
        self.token_ids: list[int] = []
        self.weights: list[float] = []

    def add(self, token_ids: list[int], weights: list[float]) -> bool:
        """Appends if it fits; returns whether it did."""
        if len(self.token_ids) + len(token_ids) > self.row_length:
            return False
        self.token_ids += token_ids
        self.weights += weights
        return True

    def finish(self, pad_id: int) -> dict[str, np.ndarray]:
        """Returns `token_ids` [T] and `loss_weight` [T]: position t's for predicting t + 1."""
        token_ids = np.full(self.row_length, pad_id, np.int32)
        token_ids[: len(self.token_ids)] = self.token_ids
        weights = np.zeros(self.row_length, np.float32)
        weights[: len(self.weights) - 1] = self.weights[1:]
        return {"token_ids": token_ids, "loss_weight": weights}


def _turn_tokens(template: ChatTemplate, turn: Turn) -> tuple[list[int], list[float]]:
    messages = [
        Message(role="user", content=turn.question),
        Message(role="assistant", content=turn.answer),
    ]
    suffix = template.render_suffix(messages)
    answer = WEIGHT_ASKED if turn.kind == "ask" else WEIGHT_ANSWER
    # A seed prompt is never predicted: it comes from a fixed list.
    question = 0.0 if turn.kind == "ask" else WEIGHT_QUESTION
    return suffix.token_ids.tolist(), [answer if a else question for a in suffix.is_answer]


def _document_of_size(rng: random.Random, num_tokens: int) -> GeneratedDocument:
    people = max(1, round(num_tokens / TOKENS_PER_PERSON))
    if rng.random() >= WINDOW_SHARE:
        return documents.make_document(rng, people)
    document = documents.make_document(rng, people + 2)
    size = len(document.text) * people // (people + 2)
    start = rng.randrange(len(document.text) - size + 1)
    return document.window(start, start + size)


def conversation_row(
    rng: random.Random, template: ChatTemplate, row_length: int
) -> dict[str, np.ndarray]:
    """Builds a row: a context of 30 to 75 % of its length, then turns until it is full."""
    row = RowBuilder(row_length)
    while True:
        document = _document_of_size(rng, int(row_length * rng.uniform(0.3, 0.75)))
        context = template.render_context(document.title, document.text)
        if row.add(context, [WEIGHT_TEXT] * len(context)):
            break
    first = True
    while document.facts:
        ask = rng.random() < (ASK_FIRST_SHARE if first else ASK_SHARE)
        first = False
        turn = (documents.draw_seed_turn if ask else documents.draw_turn)(rng, document)
        if turn is not None and not row.add(*_turn_tokens(template, turn)):
            break
    return row.finish(template.tokenizer.pad_id)


def stream_row(
    rng: random.Random, template: ChatTemplate, row_length: int
) -> dict[str, np.ndarray]:
    """Builds a row of repeated statements."""
    row = RowBuilder(row_length)
    encode = template.tokenizer.encode
    row.add(template.empty_context(), [0.0])
    for text, known in documents.fact_stream(rng, row_length // 6):
        ids = encode(text)
        weights = [WEIGHT_TEXT] * len(ids)
        if known:
            head, tail = text.split(known, 1)
            begin, end = len(encode(head.rstrip())), len(ids) - len(encode(tail)) + 1
            weights[begin:end] = [WEIGHT_ANSWER] * len(weights[begin:end])
        if not row.add(ids, weights):
            break
    return row.finish(template.tokenizer.pad_id)


def make_row(
    seed: int, phase_index: int, index: int, template: ChatTemplate
) -> dict[str, np.ndarray]:
    """Builds row `index` of a phase."""
    phase = PHASES[phase_index]
    rng = random.Random(f"row {seed} {phase_index} {index}")
    make = stream_row if rng.random() < phase.stream_share else conversation_row
    return make(rng, template, phase.row_length)
