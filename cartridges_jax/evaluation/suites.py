"""Questions with known answers: the embedded suite, and anybody's own as JSONL.

One JSON object a line: `question`, and `answers` (accepted texts; or `answer`, one). Optional:
`type` groups the scores; `parser` says how an answer is compared (see `scoring.PARSERS`); `chance`
is the score of guessing.
"""

import dataclasses
import json
import os
import random
from collections.abc import Sequence

from etils import epath

from cartridges_jax import files
from cartridges_jax.corpus import Chunk, Document
from cartridges_jax.embedded.world import asking, genres
from cartridges_jax.embedded.world.schema import GeneratedDocument, Split
from cartridges_jax.embedded.world.writing import most_fillers, write_document
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation.scoring import PARSERS
from cartridges_jax.models.tokenizer import Tokenizer

CHARACTERS_PER_TOKEN = {"sections": 4.2, "table": 4.1, "code": 2.7}  # by a genre's layout
# A text is about so many things, and its facts lie as thin as this allows.
FEWEST_THINGS, TOKENS_OF_THING = 4, 200
SIZE_TRIES, SIZE_TOLERANCE = 12, 0.05  # a text's length depends on what is drawn
TRIES_FOR_ONE = 60  # draws for a question of a type, before a document is held to have no more
# The longest right answers, lists of all things, have some 70 tokens, framed questions 32.
ANSWER_TOKENS = 96
ANSWER_ROOM = ANSWER_TOKENS + 40  # of the window, for a question and its answer


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the texts that count as right, and how to compare."""

    id: str
    type: str
    question: str
    answers: tuple[str, ...]
    parser: str = "exact"
    chance: float | None = None


def load_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Reads a JSONL file of questions.

    Raises:
      InputError: naming the line, if one is not an object with `question` and `answers`.
    """
    file = files.local_path(path)
    if not file.exists():
        raise InputError(f"there is no file of questions {path}")
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")  # JSON may hold other line ends
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not UTF-8 text that can be read: {error}") from error
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append(_parse_question(line, f"{path}:{number}", str(number)))
    if not questions:
        raise InputError(f"{path} holds no question")
    return questions


def _parse_question(line: str, where: str, name: str) -> Question:
    try:
        fields = json.loads(line)
        json.dumps(fields, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("question"), str):
        raise InputError(f'{where}: expected {{"question": "...", "answers": ["..."]}}')
    answers = fields.get("answers", fields.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise InputError(f"{where}: answers must be a text or a list of texts, got {answers!r}")
    if not all(any(c.isalnum() for c in answer) for answer in answers):
        raise InputError(f"{where}: an answer needs a letter or a digit, got {answers!r}")
    parser = fields.get("parser", "exact")
    if not isinstance(parser, str) or parser not in PARSERS:
        raise InputError(f"{where}: parser {parser!r} is none of {sorted(PARSERS)}")
    chance = fields.get("chance")
    if chance is not None and not (type(chance) in (int, float) and 0 <= chance <= 1):
        raise InputError(f"{where}: chance must be a number from 0 to 1, got {chance!r}")
    return Question(
        str(fields.get("id", name)),
        str(fields.get("type", "question")),
        fields["question"],
        tuple(answers),
        parser,
        chance,
    )


def save_questions(path: epath.PathLike, questions: Sequence[Question]) -> None:
    """Writes questions as JSONL."""
    lines = [json.dumps(dataclasses.asdict(q), ensure_ascii=False) for q in questions]
    files.write_bytes(path, ("\n".join(lines) + "\n").encode())


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
