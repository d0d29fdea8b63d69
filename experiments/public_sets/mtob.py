"""MTOB (arXiv 2309.16575): translation of Kalamang from one grammar book.

A record is a text: the book, or a sentence with its translation. The authors ask that the data is
not put on the open web, so that no model is trained on it: keep the files to yourself.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

URL = (
    "https://raw.githubusercontent.com/lukemelas/mtob/main/"
    "dataset-encrypted-with-password-kalamang.zip"
)
PASSWORD = b"kalamang"
BOOK = "grammar_book.txt"
SPLITS = {"ke": "test_examples_ke.json", "ek": "test_examples_ek.json"}
MADE_BOOK = "The word tok means house. The word rin means river. A plural ends in -sa. " * 8
MADE = {
    "ke": [{"original": "tok", "ground_truth": "house"}],
    "ek": [{"original": "rivers", "ground_truth": "rinsa"}],
}


class Mtob(tfds.core.GeneratorBasedBuilder):
    """The configuration "published" is downloaded, "made" is a sample of ours."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name) for name in ("published", "made")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"source": text, "target": text}),
            homepage="https://github.com/lukemelas/mtob",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = self.builder_config
        if config is not None and config.name == "made":
            found = {"book": [{"original": MADE_BOOK, "ground_truth": ""}], **MADE}
        else:
            found = _read(epath.Path(dl_manager.download(URL)).read_bytes())
        return {name: self._generate_examples(pairs) for name, pairs in found.items()}

    def _generate_examples(self, pairs: list[dict[str, str]]) -> Iterator[tuple[int, Any]]:
        for i, pair in enumerate(pairs):
            yield i, {"source": pair["original"], "target": pair["ground_truth"]}


def _read(archive: bytes) -> dict[str, list[dict[str, str]]]:
    """The book and both directions' sentences; each file begins with a canary that is no pair."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        names = {name.rpartition("/")[2]: name for name in opened.namelist()}

        def text(name: str) -> str:
            return opened.read(names[name], pwd=PASSWORD).decode()

        found = {"book": [{"original": text(BOOK), "ground_truth": ""}]}
        for split, name in SPLITS.items():
            found[split] = [pair for pair in json.loads(text(name)) if "ground_truth" in pair]
    return found
