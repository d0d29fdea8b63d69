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
from cartridges_jax.corpus import Document
from cartridges_jax.embedded import documents as embedded_documents
from cartridges_jax.embedded.documents import GeneratedDocument
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation.scoring import PARSERS

SUITE_SHARES = {  # question types of the embedded suite, as shares of its questions
    "lookup": 0.35,
    "reverse": 0.15,
    "two-hop": 0.10,
    "compare": 0.08,
    "summary": 0.08,
    "structure": 0.08,
    "use case": 0.16,
}
TOKENS_PER_PERSON = 62  # of a generated document, on average


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
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("question"), str):
        raise InputError(f'{where}: expected {{"question": "...", "answers": ["..."]}}')
    answers = fields.get("answers", fields.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise InputError(f"{where}: answers must be a text or a list of texts, got {answers!r}")
    parser = fields.get("parser", "exact")
    if parser not in PARSERS:
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


def held_out_document(name: str, num_tokens: int) -> tuple[Document, GeneratedDocument]:
    """Makes a procedural document of about `num_tokens` that training never saw.

    Training rows are drawn from streams named "row ..."; these are named "held-out ...".
    """
    rng = random.Random(f"held-out {name}")
    made = embedded_documents.make_document(rng, max(2, round(num_tokens / TOKENS_PER_PERSON)))
    return Document(name, made.title, made.text), made


def embedded_questions(
    document: GeneratedDocument,
    name: str,
    count: int,
    avoid: Sequence[Question] = (),
    shares: dict[str, float] | None = None,
) -> list[Question]:
    """Draws up to `count` distinct questions about a generated document, types by `shares`.

    Args:
      document: with its ground truth.
      name: seeds the draw.
      count: how many; fewer where the document has fewer of a type.
      avoid: questions that must not come again.
      shares: of the types; None for `SUITE_SHARES`.
    """
    rng = random.Random(f"questions {name}")
    taken = {q.question for q in avoid}
    out: list[Question] = []
    for kind, share in (shares or SUITE_SHARES).items():
        wanted, tries = round(count * share), 0
        while wanted and tries < 40 * count:
            tries += 1
            turn = embedded_documents.draw_turn(rng, document, kind)
            if turn is None or turn.question in taken:
                continue
            taken.add(turn.question)
            wanted -= 1
            parser = "exact"
            if kind == "structure":
                parser = "json" if turn.answer.startswith("{") else "lines"
            chance = embedded_documents.chance(document, kind)
            name = f"{kind}-{len(out)}"
            out.append(Question(name, kind, turn.question, (turn.answer,), parser, chance))
    return out
