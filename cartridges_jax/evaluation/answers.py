"""Every arm's answers to the same questions, kept as they come: an evaluation goes on."""

import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from cartridges_jax import files
from cartridges_jax.evaluation import arms
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress
from cartridges_jax.models.chat_template import Message

FILE = "answers.jsonl"


_FIELDS = {"arm", "question", "text", "token_ids"}


def _row(arm: str, question: int, turn: Message) -> dict[str, Any]:
    ids = list(turn.get("token_ids", ()))
    return {"arm": arm, "question": question, "text": turn["content"], "token_ids": ids}


class AnswerLog:
    """Answers by arm and question, one JSON line each.

    The first line says what they are answers to (`inputs`): a log of anything else is begun anew.
    A line that a kill has cut is asked again.
    """

    def __init__(self, folder: epath.Path, inputs: dict[str, Any]):
        """Opens the log of a folder."""
        self._path = folder / FILE
        inputs = json.loads(json.dumps(inputs))
        self._known: dict[tuple[str, int], Message] = {}
        lines = self._read()
        if lines and lines[0] == inputs:
            for row in lines[1:]:
                if isinstance(row, dict) and row.keys() == _FIELDS:
                    turn = Message(
                        role="assistant", content=row["text"], token_ids=row["token_ids"]
                    )
                    self._known[row["arm"], row["question"]] = turn
        kept = [_row(*key, turn) for key, turn in self._known.items()]
        text = "".join(json.dumps(row) + "\n" for row in [inputs, *kept])
        files.write_bytes(self._path, text.encode())

    def _read(self) -> list[Any]:
        if not self._path.exists():
            return []
        rows = []
        for line in self._path.read_bytes().split(b"\n")[:-1]:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def ask(
        self, model: LanguageModel, arm: Arm, questions: Sequence[str], max_new_tokens: int
    ) -> list[Message]:
        """Returns an arm's greedy answers to all questions; asks those that are not known."""
        missing = [i for i in range(len(questions)) if (arm.name, i) not in self._known]
        bar = progress(len(questions), "evaluate", "answer", len(questions) - len(missing))
        bar.set_postfix_str(arm.name)
        texts = [questions[i] for i in missing]
        with self._path.open("a") as file:
            for i, turn in arms.answer_turns(model, arm, texts, max_new_tokens):
                with files.writing(self._path):
                    file.write(json.dumps(_row(arm.name, missing[i], turn)) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                self._known[arm.name, missing[i]] = turn
                bar.update()
        bar.close()
        return [self._known[arm.name, i] for i in range(len(questions))]
