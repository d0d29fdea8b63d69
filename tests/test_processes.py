"""Several processes over gloo stand for hosts: two of four devices do what one of eight does."""

import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.shards import ShardSet
from tests.conftest import TEST_MODEL, document_named

ROOT = pathlib.Path(__file__).parent.parent
STUDY = ("--num_conversations=10", "--conversations_per_chunk=3", "--chunk_min_tokens=40",
         "--chunk_max_tokens=60", "--num_examples=1", "--question_max_tokens=24",
         "--answer_max_tokens=16", "--keep_unfinished")  # fmt: skip
TRAINING = ("--num_slots=8", "--num_steps=6", "--rows_per_step=8", "--row_length=128",
            "--checkpoint_every=2", "--learning_rate=0.02")  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    document = document_named("targets")
    path = tmp_path / "text.md"
    path.write_text(f"# {document.title}\n\n{document.text}")
    return path


def begin(command, processes, devices):
    """Starts a command in some processes of a job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    started = []
    for i in range(processes):
        job = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
        argv = [sys.executable, "-m", "cartridges_jax.cli", *command, f"--model={TEST_MODEL}"]
        argv += ["--dtype=float32", *([*job, f"--process_id={i}"] if processes > 1 else [])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(argv, env=env, **pipes))
    return started


def kill(started):
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.full
def test_a_study_that_loses_a_process(tmp_path, corpus):
    """Its units are done by the others on the next start: the planned conversations, each once."""
    study = ["synthesize", f"--corpus={corpus}", *STUDY]
    run([*study, f"--out={tmp_path / 'one'}"])
    rng = random.Random(0)
    started = begin([*study, f"--out={tmp_path / 'three'}"], 3, 1)
    while len(list((tmp_path / "three").glob("*.array_record"))) < 2:
        assert all(one.poll() is None for one in started)
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 2))
    kill(rng.sample(started, 3))  # one is lost, and the job with it
    run([*study, f"--out={tmp_path / 'three'}"], processes=2)
    one, three = (ShardSet.read(tmp_path / name, "conversations") for name in ("one", "three"))
    assert set(one.units) == set(three.units) and one.fingerprint == three.fingerprint


@pytest.mark.full
def test_training_that_is_killed_ends_with_the_same_bits(tmp_path, corpus):
    data = tmp_path / "data"
    run(["synthesize", f"--corpus={corpus}", *STUDY, f"--out={data}"])
    train = ["train", f"--corpus={corpus}", f"--data={data}", *TRAINING, "--mesh_data=8"]
    run([*train, f"--out={tmp_path / 'whole'}"], 2, 4)
    rng = random.Random(1)
    for steps in (1, 3):  # lines of metrics, and a moment
        started = begin([*train, f"--out={tmp_path / 'killed'}"], 2, 4)
        log = tmp_path / "killed" / "metrics.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < steps:
            assert all(one.poll() is None for one in started)
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        kill(rng.sample(started, 2))
    run([*train, f"--out={tmp_path / 'killed'}"], 2, 4)
    whole, killed = (
        Cartridge.load(tmp_path / name / f"{name}.cartridge") for name in ("whole", "killed")
    )
    np.testing.assert_array_equal(whole.keys, killed.keys)
    np.testing.assert_array_equal(whole.values, killed.values)


def run(command, processes=1, devices=1):
    """Runs it to its end; returns what each process said."""
    said = []
    started = begin(command, processes, devices)
    try:
        for one in started:
            said.append(one.communicate(timeout=400)[0])
    finally:
        for one in started:
            one.kill()
    for one, words in zip(started, said, strict=True):
        assert one.returncode == 0, words
    return said


def test_processes_write_the_conversations_that_one_writes(tmp_path, corpus):
    study = ["synthesize", f"--corpus={corpus}", *STUDY]
    run([*study, f"--out={tmp_path / 'one'}"])
    first, second = run([*study, f"--out={tmp_path / 'two'}"], processes=2)
    assert "conversations about" in first and "conversations about" not in second
    one, two = (ShardSet.read(tmp_path / name, "conversations") for name in ("one", "two"))
    assert set(one.units) == set(two.units) and one.fingerprint == two.fingerprint


@pytest.mark.parametrize("fsdp", [pytest.param("--nofsdp", marks=pytest.mark.full), "--fsdp"])
def test_processes_train_the_cartridge_that_one_trains(tmp_path, corpus, fsdp):
    data = tmp_path / "data"
    run(["synthesize", f"--corpus={corpus}", *STUDY, f"--out={data}"])
    train = ["train", f"--corpus={corpus}", f"--data={data}", *TRAINING]
    run([*train, f"--out={tmp_path / 'one'}", "--mesh_data=4", "--mesh_model=2"], devices=8)
    run([*train, f"--out={tmp_path / 'two'}", "--mesh_data=4", "--mesh_model=2", fsdp], 2, 4)
    one, two = (Cartridge.load(tmp_path / name / f"{name}.cartridge") for name in ("one", "two"))
    np.testing.assert_allclose(one.keys, two.keys, atol=1e-5)
    np.testing.assert_allclose(one.values, two.values, atol=1e-5)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6  # of the first process alone
