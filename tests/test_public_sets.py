"""The paper's benchmarks: their records, and the launch scripts with samples of our own."""

import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from cartridges_jax.evaluation.scoring import is_right
from experiments.public_sets import mtob, records_of
from experiments.public_sets.longhealth import LongHealth, document, questions

ROOT = pathlib.Path(__file__).parent.parent


def test_a_patient_is_a_document_with_questions(tmp_path):
    patients = list(records_of(LongHealth(config="made", data_dir=tmp_path), "test"))
    assert len(patients) == 2
    by_id = {patient["id"]: patient for patient in patients}
    first = by_id[b"patient_01"]
    assert document(first).title == "Ada Brown, born 1950-03-02: A broken wrist"
    assert "fell from a ladder" in document(first).text
    [asked] = questions(first)
    assert "Ada Brown: Which wrist was broken?\nA) The right one\nB) The left one" in asked.question
    for said in ("B", "b.", "(B)", "The left one", "B) The left one"):
        assert is_right(said, asked.answers, asked.parser), said
    assert not is_right("A", asked.answers, asked.parser)


def test_the_published_archive_is_read_without_its_canaries():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("resources/grammar_book.txt", "A book.")
        for split, name in mtob.SPLITS.items():
            pairs = [{"big-bench-canary": "x"}, {"original": split, "ground_truth": "b"}]
            made.writestr(f"splits/{name}", json.dumps(pairs))
    found = mtob._read(archive.getvalue())
    assert found["book"][0]["original"] == "A book."
    assert [found[split][0]["original"] for split in ("ke", "ek")] == ["ke", "ek"]
    assert len(found["ke"]) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("script", "words"), [("longhealth", "cartridge         24"), ("mtob", "ke cartridge")]
)
def test_launch_scripts_run_on_samples(tmp_path, script, words):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{script}", "--smoke", f"--out={tmp_path / 'out'}",
         f"--data_dir={tmp_path / 'sets'}"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert words in done.stdout
