"""Questions with known answers, as JSON Lines.

One JSON object a line: `question`, and `answers` (accepted texts; or `answer`, one). Optional:
`type` groups the scores; `parser` says how an answer is compared (see `scoring.PARSERS`); `chance`
is the score of guessing. A question that stands there again, with the same answers, counts once.
"""

import dataclasses
import json
import logging
import os

from cartridges_jax import files
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation.scoring import PARSERS, is_right, normalise

_log = logging.getLogger(__name__)


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
      InputError: naming the line, if one is not an object with `question` and `answers`, or asks
        what another asks and takes other answers for right.
    """
    file = files.local_path(path)
    if not file.exists():
        raise InputError(f"there is no file of questions {path}")
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")  # JSON may hold other line ends
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not UTF-8 text that can be read: {error}") from error
    found: dict[str, tuple[int, Question]] = {}  # by what is asked: the line, and what it says
    repeated = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        new = _parse_question(line, f"{path}:{number}", str(number))
        asked = " ".join(new.question.split())
        first, known = found.setdefault(asked, (number, new))
        if (known.answers, known.parser) != (new.answers, new.parser):
            raise InputError(
                f"{path}:{number} asks what line {first} asks, but other answers are right; ask "
                "once, with all answers that are"
            )
        if first != number:
            repeated.append(number)
    if repeated:
        _log.warning(
            "%s: %d lines ask again what others ask, such as line %d; each question counts once",
            path, len(repeated), repeated[0],
        )  # fmt: skip
    if not found:
        raise InputError(f"{path} holds no question")
    return [question for _, question in found.values()]


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
    parser = fields.get("parser", "exact")
    if not isinstance(parser, str) or parser not in PARSERS:
        raise InputError(f"{where}: parser {parser!r} is none of {sorted(PARSERS)}")
    for answer in answers:
        if not normalise(answer):
            raise InputError(f"{where}: {answer!r} is no answer once spaces and quotes are off")
        if not is_right(answer, [answer], parser):
            raise InputError(f"{where}: {answer!r} is no {parser} that an answer could equal")
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
