"""kill -9 and SIGTERM at random moments: what is rerun finishes, and ends with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cartridges_jax import Cartridge
from cartridges_jax.self_study.conversation import load_conversations
from cartridges_jax.shards import ShardSet
from tests.conftest import TEST_MODEL, document_named

KILLS = 5
SYNTHESIZE = (
    "--num_conversations=60", "--conversations_per_chunk=16", "--question_share=1",
    "--chunk_min_tokens=100", "--chunk_max_tokens=200", "--num_examples=0",
    "--question_max_tokens=32", "--answer_max_tokens=32",
)  # fmt: skip
TRAIN = (
    "--num_slots=16", "--num_steps=60", "--rows_per_step=2", "--row_length=256",
    "--checkpoint_every=4",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What one process has compiled the next need not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def start(*argv, stderr=subprocess.DEVNULL):
    # A job of one thread beside another's, as in any other process: results must not depend on it.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "cartridges_jax.cli", *argv, f"--model={TEST_MODEL}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=stderr,
    )  # fmt: skip


def finish(*argv):
    process = start(*argv, stderr=subprocess.PIPE)
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()[-2000:]


def kill_and_finish(argv, done, total, rng, kills=KILLS, signals=(signal.SIGKILL,)):
    """Starts the command again and again; kills it after random amounts of new work.

    Args:
      argv: the command.
      done: tells how many units are finished on disk.
      total: units of a whole run.
      rng: draws the moments.
      kills: how often.
      signals: drawn from.

    Returns:
      How many kills hit a running stage.
    """
    hit = 0
    for i in range(kills):
        process = start(*argv)
        goal = done() + rng.uniform(0.2, 1.0) * (total - done()) / (kills - i + 1)
        while process.poll() is None and done() < goal:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))  # not always right after a rename
        if process.poll() is None:
            which = rng.choice(signals)
            process.send_signal(which)
            hit += 1
            # It may just have ended; SIGTERM before training begins has nothing to save.
            ends = {signal.SIGKILL: (0, -9), signal.SIGTERM: (0, -15, 143)}
            assert process.wait() in ends[which]
        process.wait()
    finish(*argv)
    return hit


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "text.md"
    document = document_named("kill")
    path.write_text(f"# {document.title}\n\n{document.text}\n")
    return path


@pytest.fixture(scope="module")
def whole(corpus):
    """Data of an uninterrupted run: conversations, targets and a trained cartridge."""
    folder = corpus.parent / "whole"
    finish("synthesize", f"--corpus={corpus}", f"--out={folder}", *SYNTHESIZE)
    finish("train", f"--corpus={corpus}", f"--data={folder}", f"--out={folder / 'run'}", *TRAIN)
    return folder


def copy_shards(source, target, name):
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.name.startswith(name):
            (target / file.name).write_bytes(file.read_bytes())


def shards_on_disk(folder, name):
    return lambda: len(list(folder.glob(f"{name}-*.array_record"))) if folder.exists() else 0


def test_synthesis(corpus, whole, tmp_path):
    argv = ("synthesize", f"--corpus={corpus}", f"--out={tmp_path}", *SYNTHESIZE)
    want = ShardSet.read(whole, "conversations")
    count = shards_on_disk(tmp_path, "conversations")
    assert kill_and_finish(argv, count, len(want.units), random.Random(0)) == KILLS
    got = ShardSet.read(tmp_path, "conversations")
    ids = [c.id for index in sorted(got.units) for c in load_conversations(got, index)]
    assert len(ids) == len(set(ids)) == want.num_records
    assert got.fingerprint == want.fingerprint


def test_scoring(corpus, whole, tmp_path):
    data = tmp_path / "data"
    copy_shards(whole, data, "conversations")
    argv = ("train", f"--corpus={corpus}", f"--data={data}", f"--out={tmp_path / 'run'}", *TRAIN)
    want = ShardSet.read(whole, "targets")
    count = shards_on_disk(data, "targets")
    assert kill_and_finish(argv, count, len(want.units), random.Random(1)) == KILLS
    assert ShardSet.read(data, "targets").fingerprint == want.fingerprint


def test_training(corpus, whole, tmp_path):
    argv = ("train", f"--corpus={corpus}", f"--data={whole}", f"--out={tmp_path}", *TRAIN)
    checkpoints = tmp_path / "checkpoints"

    def steps():
        names = [p.name for p in checkpoints.iterdir()] if checkpoints.exists() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    assert kill_and_finish(argv, steps, 60, random.Random(2)) == KILLS
    check_same(whole, tmp_path)


@pytest.mark.full
def test_training_that_is_stopped_fifty_times(corpus, whole, tmp_path):
    argv = ("train", f"--corpus={corpus}", f"--data={whole}", f"--out={tmp_path}", *TRAIN)

    def steps():
        log = tmp_path / "metrics.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    signals = (signal.SIGKILL, signal.SIGTERM)
    assert kill_and_finish(argv, steps, 60, random.Random(3), 50, signals) >= 45
    check_same(whole, tmp_path)


def test_sigterm_saves_at_the_step(corpus, whole, tmp_path):
    """Between two checkpoints too; the sentence says where, and that the same command goes on."""
    every = [word for word in TRAIN if "checkpoint_every" not in word] + ["--checkpoint_every=60"]
    argv = ("train", f"--corpus={corpus}", f"--data={whole}", f"--out={tmp_path / 'run'}", *every)
    process = start(*argv, stderr=subprocess.PIPE)
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= 7):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    said = err.decode().replace("\r", "\n").splitlines()[-1]
    assert process.returncode == 143 and "the same command goes on" in said
    step = int(said.split("at step ")[1].split(";")[0])
    assert step >= 7 and (tmp_path / "run" / "checkpoints" / str(step)).exists()
    finish(*argv)
    got = Cartridge.load(tmp_path / "run" / "run.cartridge")
    want = Cartridge.load(whole / "run" / "run.cartridge")
    np.testing.assert_array_equal(got.keys, want.keys)


def check_same(whole, folder):
    got = Cartridge.load(folder / f"{folder.name}.cartridge")
    want = Cartridge.load(whole / "run" / "run.cartridge")
    np.testing.assert_array_equal(got.keys, want.keys)
    np.testing.assert_array_equal(got.values, want.values)
    story = [{k: v for k, v in c.provenance.items() if k != "made"} for c in (got, want)]
    assert story[0] == story[1]  # but for the date, in case a day has ended
