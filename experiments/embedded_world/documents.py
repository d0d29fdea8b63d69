"""Held-out documents of the embedded world, and questions about them with known answers."""

import dataclasses
import random
from collections.abc import Sequence

from etils import epath

from cartridges_jax.corpus import Chunk, Document
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.models.tokenizer import Tokenizer
from experiments.embedded_world.world import asking, genres
from experiments.embedded_world.world.schema import GeneratedDocument, Split
from experiments.embedded_world.world.writing import most_fillers, write_document

# The model of this world, which the tests use for its size.
MODEL = epath.Path(__file__).parent.parent.parent / "tests" / "data" / "test_model"
CHARACTERS_PER_TOKEN = {"sections": 4.2, "table": 4.1, "code": 2.7}  # by a genre's layout
# A text is about so many things, and its facts lie as thin as this allows.
FEWEST_THINGS, TOKENS_OF_THING = 4, 200
SIZE_TRIES, SIZE_TOLERANCE = 12, 0.05  # a text's length depends on what is drawn
TRIES_FOR_ONE = 60  # draws for a question of a type, before a document is held to have no more
# The longest right answers, lists of all things, have some 70 tokens, framed questions 32.
ANSWER_TOKENS = 96
ANSWER_ROOM = ANSWER_TOKENS + 40  # of the window, for a question and its answer


def held_out_document(
    name: str, num_tokens: int, genre: str | None = None
) -> tuple[Document, GeneratedDocument]:
    """Makes a procedural document of about `num_tokens` that training never saw.

    Training rows are drawn from streams named "row ..."; these are named "held-out ...", and say
    things in the wordings of the scores. A fact takes some 30 tokens of a text of 500, 50 of one of
    1,900.

    Args:
      name: of the document; seeds it.
      num_tokens: of the text, roughly.
      genre: one of `genres.GENRES`; None draws one that training had too.
    """
    rng = random.Random(f"held-out {name}")
    kind = genres.GENRES[genre] if genre else rng.choice(genres.TRAINING)
    wanted = num_tokens * CHARACTERS_PER_TOKEN[kind.layout]
    things = max(FEWEST_THINGS, num_tokens // TOKENS_OF_THING)
    asked, tried = wanted, []
    for _ in range(SIZE_TRIES):
        fillers = most_fillers(kind, int(asked), things)
        tried.append(write_document(rng, kind, int(asked), "test", fillers))
        if abs(len(tried[-1].text) / wanted - 1) < SIZE_TOLERANCE:
            break
        asked *= wanted / len(tried[-1].text)
    made = min(tried, key=lambda d: abs(len(d.text) - wanted))
    return Document(name, made.title, made.text), made


def shown_part(
    made: GeneratedDocument, chunk: Chunk, tokenizer: Tokenizer, token_ids: Sequence[int]
) -> GeneratedDocument:
    """What is known from a chunk of a generated document, whose text is `token_ids`."""
    before = len(tokenizer.decode(token_ids[: chunk.start]))
    begin = made.text.index(chunk.text, max(0, before - 1))  # a space at the edge may be gone
    return made.window(begin, begin + len(chunk.text))


def embedded_questions(
    document: GeneratedDocument,
    name: str,
    count: int,
    avoid: Sequence[Question] = (),
    shares: dict[str, float] | None = None,
    wordings: Split = "test",
) -> list[Question]:
    """Draws about `count` questions about a generated document, types by `shares`.

    No two of a type have the same answer: another wording for the same fact is no new evidence.

    Args:
      document: with its ground truth.
      name: seeds the draw.
      count: how many, each type's share rounded; fewer where the document has fewer of a type, or
        no ground for it.
      avoid: questions that must not come again.
      shares: of the types; None for those of training (`asking.WEIGHTS`).
      wordings: in which they are asked.
    """
    rng = random.Random(f"questions {name}")
    shares = shares or asking.WEIGHTS
    document = dataclasses.replace(document, split=wordings)
    avoided = {q.question for q in avoid}
    taken: set[tuple[str, str]] = set()
    out: list[Question] = []
    for kind, share in shares.items():
        wanted, tries = round(count * share / sum(shares.values())), 0
        while wanted and tries < TRIES_FOR_ONE * (wanted + 1):
            tries += 1
            turn = asking.draw_turn(rng, document, kind)
            if turn is None or turn.question in avoided or (kind, turn.answer) in taken:
                continue
            taken.add((kind, turn.answer))
            wanted -= 1
            chance, answers = asking.chance(document, kind), (turn.answer,)
            id = f"{kind}-{len(out)}"
            out.append(Question(id, kind, turn.question, answers, parser_of(turn), chance))
    return out


def parser_of(turn: asking.Turn) -> str:
    """How an answer to this question is compared with the right one."""
    if turn.kind == "structure" and turn.answer.startswith("{"):
        return "json"
    numbered = turn.answer.startswith("1.")  # steps, whose order counts
    return "lines" if turn.kind in ("structure", "listing") and not numbered else "exact"
