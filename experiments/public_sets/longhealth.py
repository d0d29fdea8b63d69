"""LongHealth (arXiv 2401.14490): 20 fictional patients, 400 questions with five answers each.

A record is a patient: what is known of them, their notes, and the questions about these.
"""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from cartridges_jax.corpus import Document
from cartridges_jax.evaluation.questions import Question

URL = "https://raw.githubusercontent.com/kbressem/LongHealth/main/data/benchmark_v5.json"
OPTIONS = "abcde"
MADE = {
    "patient_01": {
        "name": "Ada Brown", "birthday": "1950-03-02", "diagnosis": "A broken wrist",
        "texts": {"text_0": "Ada Brown fell from a ladder in May. Her left wrist was broken. " * 6},
        "questions": [{
            "question": "Which wrist was broken?", "answer_a": "The right one",
            "answer_b": "The left one", "answer_c": "Both", "answer_d": "None",
            "answer_e": "It is not said", "correct": "The left one",
        }],
    },
    "patient_02": {
        "name": "Carl Dean", "birthday": "1961-11-20", "diagnosis": "Asthma",
        "texts": {"text_0": "Carl Dean has had asthma since 1998. He uses a blue inhaler. " * 6},
        "questions": [{
            "question": "Since when has he had asthma?", "answer_a": "1996", "answer_b": "1997",
            "answer_c": "1998", "answer_d": "1999", "answer_e": "2000", "correct": "1998",
        }],
    },
}  # fmt: skip


class LongHealth(tfds.core.GeneratorBasedBuilder):
    """The configuration "published" is downloaded, "made" is a sample of ours."""

    VERSION = tfds.core.Version("5.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name) for name in ("published", "made")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        question = {"question": text, "correct": text} | {f"answer_{o}": text for o in OPTIONS}
        features = {
            "id": text, "name": text, "birthday": text, "diagnosis": text,
            "texts": tfds.features.Sequence(text), "questions": tfds.features.Sequence(question),
        }  # fmt: skip
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/kbressem/LongHealth",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        if config is not None and config.name == "made":
            return {"test": self._generate_examples(MADE)}
        file = epath.Path(dl_manager.download(URL))
        return {"test": self._generate_examples(json.loads(file.read_text()))}

    def _generate_examples(self, patients: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, patient in patients.items():
            asked = ["question", "correct", *(f"answer_{option}" for option in OPTIONS)]
            yield (
                name,
                {
                    "id": name,
                    **{field: patient[field] for field in ("name", "birthday", "diagnosis")},
                    "texts": [
                        patient["texts"][key] for key in sorted(patient["texts"], key=_number)
                    ],
                    "questions": [
                        {field: q[field] for field in asked} for q in patient["questions"]
                    ],
                },
            )


def _number(key: str) -> int:
    """Of text_0, text_1, ... text_10."""
    return int(key.rpartition("_")[2])


def document(patient: dict[str, Any]) -> Document:
    """A patient's notes as a document."""
    texts = [text.decode() for text in patient["texts"]]
    name, birthday, diagnosis = (patient[key].decode() for key in ("name", "birthday", "diagnosis"))
    title = f"{name}, born {birthday}: {diagnosis}"
    return Document(patient["id"].decode(), title, "\n\n".join(texts))


def questions(patient: dict[str, Any]) -> list[Question]:
    """The questions about a patient, to be answered by a letter."""
    asked, found = patient["questions"], []
    for i, question in enumerate(asked["question"]):
        options = {o: asked[f"answer_{o}"][i].decode() for o in OPTIONS}
        right = asked["correct"][i].decode()
        letter = next(o for o, text in options.items() if text == right).upper()
        listed = "\n".join(f"{o.upper()}) {text}" for o, text in options.items())
        text = (
            f"About the patient {patient['name'].decode()}: {question.decode()}\n{listed}\n"
            "Answer with the letter alone."
        )
        accepted = (letter, f"{letter})", f"({letter})", right, f"{letter}) {right}")
        name = f"{patient['id'].decode()}/{i}"
        found.append(Question(name, "choice", text, accepted, chance=1 / len(OPTIONS)))
    return found
