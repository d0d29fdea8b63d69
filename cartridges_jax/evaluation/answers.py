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

FILE = "answers.jsonl"


class AnswerLog:
    """Answers by arm and question, one JSON line each.

    The first line says what they are answers to (`inputs`): a log of anything else is begun anew.
    A line that a kill has cut is asked again.
    """

    def __init__(self, folder: epath.Path, inputs: dict[str, Any]):
        """Opens the log of a folder."""
        self._path = folder / FILE
        inputs = json.loads(json.dumps(inputs))
        self._known: dict[tuple[str, int], str] = {}
        lines = self._read()
        if lines and lines[0] == inputs:
            for row in lines[1:]:
                if isinstance(row, dict) and row.keys() == {"arm", "question", "text"}:
                    self._known[row["arm"], row["question"]] = row["text"]
        kept = [{"arm": a, "question": q, "text": t} for (a, q), t in self._known.items()]
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
    ) -> list[str]:
        """Returns an arm's greedy answers to all questions; asks those that are not known."""
        missing = [i for i in range(len(questions)) if (arm.name, i) not in self._known]
        bar = progress(len(questions), "evaluate", "answer", len(questions) - len(missing))
        bar.set_postfix_str(arm.name)
        size = arms.rows_together(model, arm, questions, max_new_tokens)
        with self._path.open("a") as file:
            for start in range(0, len(missing), size):
                asked = missing[start : start + size]
                texts = arms.answer(model, arm, [questions[i] for i in asked], max_new_tokens)
                new = dict(zip(asked, texts, strict=True))
                rows = ({"arm": arm.name, "question": i, "text": new[i]} for i in new)
                with files.writing(self._path):
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
                    file.flush()
                    os.fsync(file.fileno())
                self._known |= {(arm.name, i): text for i, text in new.items()}
                bar.update(len(asked))
        bar.close()
        return [self._known[arm.name, i] for i in range(len(questions))]
