"""Training rows of the embedded model: a document as context, then questions with right answers.

Row `index` of a phase depends only on (phase, name, index), so training resumes exactly and reads
no file. Loss weights: text of the document 0.1, questions 0.2, answers 1.0, messages written for a
seed prompt 0.5; in a fact stream or a recital 1.0 on words that can be known, 0.1 elsewhere. A row
has places for as many targets as half its length: answers come first, then as much of the rest as
fits, drawn at random and weighted up, so that the sum stays what it would have been.
"""

import dataclasses
import random
from collections.abc import Callable

import numpy as np

from cartridges_jax.models.chat_template import ChatTemplate, Message, context_text
from cartridges_jax.models.tokenizer import SentencePieceTokenizer
from experiments.embedded_world import pointers
from experiments.embedded_world.pointers import Mention, Passage, Pointer
from experiments.embedded_world.world import asking, genres
from experiments.embedded_world.world.asking import Turn
from experiments.embedded_world.world.schema import GeneratedDocument, Genre
from experiments.embedded_world.world.seeding import draw_seed_turn
from experiments.embedded_world.world.writing import most_fillers, write_document

WEIGHT_TEXT, WEIGHT_QUESTION, WEIGHT_ANSWER, WEIGHT_ASKED = 0.1, 0.2, 1.0, 0.5
CHARACTERS_PER_TOKEN = 3.6  # of these texts
RANDOM_SHARE = 0.25  # documents of a genre made up for them
WINDOW_SHARE = 0.4  # rows whose context begins and ends anywhere in a text, as chunks do
ASK_FIRST_SHARE = 0.4  # conversations that open with a seed prompt, as bot A's do
ASK_SHARE = 0.1  # of the later turns
SHORTEST_CONTEXT = 0.2  # of a row
RECITE = "Say what the text says."  # what a recital answers
NARROW_SHARE = 0.5  # documents of many things and few kinds of facts: the kind alone tells little
MOST_FILLERS = 4.0  # sentences without a fact for each one with a fact; drawn from 0, mostly few


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training at one row length."""

    row_length: int  # tokens
    num_tokens: int
    stream_share: float  # rows that are fact streams
    comparison_share: float  # rows of comparisons
    recital_share: float  # conversations whose first turn says all facts of the text
    longest_context: float = 0.65  # of a row; the shortest is SHORTEST_CONTEXT


FROM_NOTHING = (
    Phase(512, 12_000_000, 0.20, 0.06, 0.5),
    Phase(512, 108_000_000, 0.02, 0.12, 0.5),
    Phase(1024, 170_000_000, 0.01, 0.06, 0.3),
    Phase(2048, 110_000_000, 0.0, 0.04, 0.3, longest_context=0.9),
)
FROM_A_MODEL = (
    Phase(512, 7_000_000, 0.01, 0.06, 0.3),
    Phase(1024, 8_000_000, 0.01, 0.06, 0.3),
    Phase(2048, 4_500_000, 0.0, 0.04, 0.3, longest_context=0.9),
)


@dataclasses.dataclass(frozen=True)
class AnswerSpan:
    """Where a row holds an answer: the tokens [start, end), the closing one included."""

    kind: str
    start: int
    end: int


class RowBuilder:
    """Collects token ids with the weight of *predicting* each, up to a row's length."""

    def __init__(self, row_length: int):
        self.row_length = row_length
        self.token_ids: list[int] = []
        self.weights: list[float] = []
        self.answers: list[AnswerSpan] = []
        self.pointers: list[Pointer] = []

    def add(self, token_ids: list[int], weights: list[float]) -> bool:
        """Appends if it fits; returns whether it did."""
        if len(self.token_ids) + len(token_ids) > self.row_length:
            return False
        self.token_ids += token_ids
        self.weights += weights
        return True

    def padded(self, pad_id: int) -> np.ndarray:
        """Token ids [T]."""
        token_ids = np.full(self.row_length, pad_id, np.int32)
        token_ids[: len(self.token_ids)] = self.token_ids
        return token_ids

    def finish(self, rng: random.Random, pad_id: int) -> dict[str, np.ndarray]:
        """A training row with M = T / 2 places for targets.

        Returns:
          `token_ids` [T]; `index` [M], positions whose next token is a target; `target` [M], that
          token; `weight` [M], 0 where a place is not used; `place` [T], the place of each position,
          M for none; `queries` and `keys`, see `_pointers`.
        """
        places = self.row_length // 2
        known = [(i, w) for i, w in enumerate(self.weights[1:]) if w > 0]
        first = [x for x in known if x[1] >= WEIGHT_ASKED][:places]
        rest = [x for x in known if x[1] < WEIGHT_ASKED]
        drawn = rng.sample(rest, min(len(rest), places - len(first)))
        share = len(rest) / max(len(drawn), 1)
        chosen = first + [(i, w * share) for i, w in drawn]
        token_ids = self.padded(pad_id)
        index = np.zeros(places, np.int32)
        weight = np.zeros(places, np.float32)
        index[: len(chosen)] = [i for i, _ in chosen]
        weight[: len(chosen)] = [w for _, w in chosen]
        place = np.full(self.row_length, places, np.int32)
        place[index[: len(chosen)]] = np.arange(len(chosen))
        queries, keys = self._pointers(rng)
        return {
            "token_ids": token_ids, "index": index, "target": token_ids[index + 1],
            "weight": weight, "place": place, "queries": queries, "keys": keys,
        }  # fmt: skip

    def _checked(self, pointer: Pointer) -> Pointer:
        """The pointer with those of its keys that can be seen and, to be copied, are the word."""
        ids, query = self.token_ids, pointer.query
        keys = [k for k in pointer.keys if k <= query]
        if pointer.group == pointers.COPY:  # "Late is the status of ..." is said again as "late"
            keys = [k for k in keys if ids[k] == ids[query + 1]]
        return dataclasses.replace(pointer, keys=tuple(keys[: pointers.MOST_KEYS]))

    def _pointers(self, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Queries [G, Q] and their keys [G, Q, W], -1 where there is none; Q = T / 4."""
        places = self.row_length // 4
        queries = np.full((pointers.GROUPS, places), -1, np.int32)
        keys = np.full((*queries.shape, pointers.MOST_KEYS), -1, np.int32)
        checked = [self._checked(pointer) for pointer in self.pointers]
        for group in range(pointers.GROUPS):
            fit = [p for p in checked if p.group == group and p.keys]
            for i, pointer in enumerate(rng.sample(fit, min(len(fit), places))):
                queries[group, i] = pointer.query
                keys[group, i, : len(pointer.keys)] = pointer.keys
        return queries, keys


def _turn_tokens(template: ChatTemplate, turn: Turn) -> tuple[list[int], list[float], list[bool]]:
    messages = [
        Message(role="user", content=turn.question),
        Message(role="assistant", content=turn.answer),
    ]
    suffix = template.render_suffix(messages)
    answer = WEIGHT_ASKED if turn.kind == "ask" else WEIGHT_ANSWER
    # A seed prompt is never predicted: it comes from a fixed list.
    question = 0.0 if turn.kind == "ask" else WEIGHT_QUESTION
    is_answer = [bool(a) for a in suffix.is_answer]
    return suffix.token_ids.tolist(), [answer if a else question for a in is_answer], is_answer


def _draw_genre(rng: random.Random) -> Genre:
    return genres.random_genre(rng) if rng.random() < RANDOM_SHARE else rng.choice(genres.TRAINING)


def _narrow(rng: random.Random, genre: Genre) -> Genre:
    """The genre with two to four kinds of facts."""
    kept = set(rng.sample([a.noun for a in genre.attributes], rng.choice((2, 3, 3, 4))))
    if genre.in_time:
        kept.add(next(a.noun for a in genre.attributes if a.kind == "year"))
    attributes = tuple(a for a in genre.attributes if a.noun in kept)
    return dataclasses.replace(genre, attributes=attributes)


def _document_of_size(rng: random.Random, num_tokens: int) -> GeneratedDocument:
    size = int(num_tokens * CHARACTERS_PER_TOKEN)
    genre = _draw_genre(rng)
    fillers = min(MOST_FILLERS * rng.random() ** 2, most_fillers(genre, size, 4))
    if rng.random() < NARROW_SHARE:
        genre, fillers = _narrow(rng, genre), 0.2 * fillers
    if rng.random() >= WINDOW_SHARE:
        return write_document(rng, genre, size, "noisy", fillers)
    document = write_document(rng, genre, int(size * rng.uniform(1.2, 2.5)), "noisy", fillers)
    start = rng.randrange(max(len(document.text) - size, 0) + 1)
    return document.window(start, start + size)


def conversation_row(
    rng: random.Random,
    template: ChatTemplate,
    row_length: int,
    draw_document: Callable[[random.Random, int], GeneratedDocument] = _document_of_size,
    draw_turn: Callable[[random.Random, GeneratedDocument], Turn | None] = asking.draw_turn,
    recital_share: float = 0.0,
    longest_context: float = 0.65,
) -> RowBuilder:
    """Builds a row: a context of 20 % to about `longest_context` of its length, then turns."""
    row = RowBuilder(row_length)
    while True:
        share = rng.uniform(SHORTEST_CONTEXT, longest_context)
        document = draw_document(rng, int(row_length * share))
        context = template.render_context(document.title, document.text)
        if len(context) < (longest_context + 0.05) * row_length:
            row.add(context, [WEIGHT_TEXT] * len(context))
            break
    text = _text_passage(template, document)
    found = pointers.mentions(document, text)
    row.pointers += pointers.of_text(document, text, found)
    if rng.random() < recital_share:
        _recite(row, rng, template, document, found)
    first = True
    while document.facts:
        ask = rng.random() < (ASK_FIRST_SHARE if first else ASK_SHARE)
        first = False
        turn = (draw_seed_turn if ask else draw_turn)(rng, document)
        if turn is None:
            continue
        start = len(row.token_ids)
        token_ids, weights, is_answer = _turn_tokens(template, turn)
        if not row.add(token_ids, weights):
            break
        begin = start + is_answer.index(True)
        row.answers.append(AnswerSpan(turn.kind, begin, len(row.token_ids)))
        if not ask:
            answer = _passage(template, turn.answer, begin)
            asked = _passage(template, turn.question, start + 1)  # behind the user's marker
            row.pointers += pointers.of_turn(document, turn, asked, answer, text, found)
    return row


def _passage(template: ChatTemplate, text: str, shift: int) -> Passage:
    tokenizer = template.tokenizer
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise TypeError("training needs the tokenizer as SentencePiece made it")
    return Passage(text, tokenizer.offsets(text), shift)


def _text_passage(template: ChatTemplate, document: GeneratedDocument) -> Passage:
    """The text of the document that opens a row, without its title."""
    whole = context_text(document.title, document.text)
    before = len(whole) - len(document.text)
    shown = _passage(template, whole, len(template.context_head()))
    return Passage(document.text, [(a - before, b - before) for a, b in shown.offsets], shown.shift)


def _statement_tokens(
    template: ChatTemplate, statement: str, known: str
) -> tuple[list[int], list[float]]:
    """A statement's tokens; only what can be `known` has the weight of an answer."""
    encode = template.tokenizer.encode
    ids = encode(statement)
    weights = [WEIGHT_TEXT] * len(ids)
    if known:
        head, tail = statement.rsplit(known, 1)
        begin, end = len(encode(head.rstrip())), len(ids) - len(encode(tail)) + 1
        weights[begin:end] = [WEIGHT_ANSWER] * len(weights[begin:end])
    return ids, weights


def _recite(
    row: RowBuilder,
    rng: random.Random,
    template: ChatTemplate,
    document: GeneratedDocument,
    found: list[Mention],
) -> None:
    """Adds a turn that says all facts of the document, as far as they fit."""
    order = [Message(role="user", content=RECITE)]
    before = template.render_turns(order, add_generation_prompt=True)
    row.add(before, [0.0] * len(before))
    for fact, said, known in asking.recital(rng, document):
        begin = len(row.token_ids)
        if not row.add(*_statement_tokens(template, said, known)):
            break
        answer = _passage(template, said, begin)
        row.pointers += pointers.of_answer(document, [(fact.thing, fact.noun)], answer, found)


def stream_row(rng: random.Random, template: ChatTemplate, row_length: int) -> RowBuilder:
    """Builds a row of repeated statements."""
    row = RowBuilder(row_length)
    row.add(template.empty_context(), [0.0])
    document = write_document(rng, _draw_genre(rng), 2500, "noisy", 0.0)
    for statement in asking.fact_stream(rng, document, row_length // 8):
        if not row.add(*_statement_tokens(template, *statement)):
            break
    return row


def comparison_row(rng: random.Random, template: ChatTemplate, row_length: int) -> RowBuilder:
    """Builds a row of comparisons, one after another: exercise in which number is higher."""
    row = RowBuilder(row_length)
    row.add(template.empty_context(), [0.0])
    document = write_document(rng, _draw_genre(rng), 2500, "noisy", 0.0)
    for facts, said, winner in asking.comparisons(rng, document, row_length // 16):
        begin = len(row.token_ids)
        if not row.add(*_statement_tokens(template, said, winner)):
            break
        row.pointers += pointers.of_comparison(facts, _passage(template, said, begin))
    return row


def make_row(phase: Phase, name: str, index: int, template: ChatTemplate) -> dict[str, np.ndarray]:
    """Builds row `index` of a phase; `name` seeds all of its rows."""
    rng = random.Random(f"row {name} {index}")
    drawn = rng.random()
    if drawn < phase.stream_share:
        row = stream_row(rng, template, phase.row_length)
    elif drawn < phase.stream_share + phase.comparison_share:
        row = comparison_row(rng, template, phase.row_length)
    else:
        row = conversation_row(
            rng, template, phase.row_length,
            recital_share=phase.recital_share, longest_context=phase.longest_context,
        )  # fmt: skip
    return row.finish(rng, template.tokenizer.pad_id)


def held_out_rows(count: int, row_length: int, template: ChatTemplate) -> list[RowBuilder]:
    """Rows whose documents, wordings and seeds training never sees."""

    def document(rng: random.Random, num_tokens: int) -> GeneratedDocument:
        genre = rng.choice(genres.TRAINING)
        size = int(num_tokens * CHARACTERS_PER_TOKEN)
        return write_document(rng, genre, size, "validation", most_fillers(genre, size, 4))

    def turn(rng: random.Random, shown: GeneratedDocument) -> Turn | None:
        return asking.draw_turn(rng, shown, rng.choice(asking.KINDS))  # all kinds alike

    rng = random.Random("held-out rows")
    return [conversation_row(rng, template, row_length, document, turn) for _ in range(count)]
