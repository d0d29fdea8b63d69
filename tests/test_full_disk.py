"""A disk that fills up while a stage runs: one sentence, exit status 2, and it goes on with room.

A limit on the size of files stands for it: the system then refuses writes in Python, in C++ and in
threads as it does on a full disk, with another number.
"""

import errno
import json
import os
import subprocess
import sys

import pytest

from cartridges_jax import Cartridge, files
from cartridges_jax.errors import InputError
from cartridges_jax.self_study.conversation import load_conversations
from cartridges_jax.shards import ShardSet
from tests.conftest import TEST_MODEL, document_named

SYNTHESIZE = (
    "--num_conversations=24", "--conversations_per_chunk=8", "--question_share=1",
    "--chunk_min_tokens=100", "--chunk_max_tokens=200", "--num_examples=0",
    "--question_max_tokens=32", "--answer_max_tokens=32",
)  # fmt: skip
TRAIN = ("--num_slots=16", "--num_steps=12", "--row_length=256", "--checkpoint_every=4")


COMMAND = """
import resource
limit = {most_bytes} or resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
from cartridges_jax.cli import entry_point
entry_point()
"""


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """Runs a command with a limit on the size of its files; returns the status and what it said."""
    cache = str(tmp_path_factory.mktemp("cache"))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "XDG_CACHE_HOME": cache}

    def run(*argv, most_bytes=0):
        code = COMMAND.format(most_bytes=most_bytes)
        done = subprocess.run(
            [sys.executable, "-c", code, *argv, f"--model={TEST_MODEL}"],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stderr

    return run


def refused(found, path):
    """Checks that a command ended in its one sentence."""
    status, said = found
    last = said.strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in said, said[-2000:]
    assert last.startswith(f"error: cannot write {path}") and "File too large" in last
    assert "are free there" in last and "what is finished is kept" in last


@pytest.mark.full
def test_every_stage_says_so_and_goes_on(cli, tmp_path):
    corpus = tmp_path / "text.md"
    corpus.write_text(document_named("targets").text)
    data, out = tmp_path / "data", tmp_path / "run"
    study = ("synthesize", f"--corpus={corpus}", f"--out={data}", *SYNTHESIZE)
    refused(cli(*study, most_bytes=600), data)
    assert not list(data.glob("*.tmp-*"))
    assert cli(*study)[0] == 0
    whole = ShardSet.read(data, "conversations")
    assert sum(len(load_conversations(whole, i)) for i in whole.units) >= 24

    train = ("train", f"--corpus={corpus}", f"--data={data}", f"--out={out}", *TRAIN)
    refused(cli(*train, most_bytes=2000), data)  # the targets
    status, said = cli(*train)
    assert status == 0, said[-2000:]
    again = (*train[:3], f"--out={tmp_path / 'again'}", *TRAIN)
    refused(cli(*again, most_bytes=6000), tmp_path / "again")  # a checkpoint
    cartridge = out / "run.cartridge"
    assert Cartridge.load(cartridge).num_slots == 16

    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "Who is there?", "answer": "x"}))
    refused(
        cli(
            "evaluate", f"--corpus={corpus}", f"--cartridge={cartridge}",
            f"--questions={questions}", f"--out={tmp_path / 'eval'}", "--answer_max_tokens=8",
            most_bytes=9000,
        ),
        tmp_path / "eval",
    )  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_words_of_any_library_are_enough(tmp_path, number):
    said = os.strerror(number)
    for error in (OSError(number, said), RuntimeError(f"UNKNOWN: {said}; writing /x/y")):
        told = pytest.raises(InputError, match=f"cannot write .*: {said}")
        with told, files.writing(tmp_path / "file"):
            try:
                raise error
            except Exception as cause:
                raise ValueError("the writer failed") from cause


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), files.writing(tmp_path / "file"):
        raise ZeroDivisionError
