"""Several processes over gloo stand for hosts: two of four devices do what one of eight does."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.metrics import read_metrics
from cartridges_jax.shards import ShardSet
from tests.conftest import TEST_MODEL, document_named

ROOT = pathlib.Path(__file__).parent.parent
STUDY = ("--num_conversations=10", "--conversations_per_chunk=3", "--chunk_min_tokens=40",
         "--chunk_max_tokens=60", "--num_examples=1", "--question_max_tokens=24",
         "--answer_max_tokens=16", "--keep_unfinished")  # fmt: skip
STOPS = int(os.environ.get("CARTRIDGES_STOPS", "6"))
TRAINING = ("--num_slots=8", "--num_steps=6", "--rows_per_step=8", "--row_length=128",
            "--checkpoint_every=2", "--learning_rate=0.02")  # fmt: skip


def write_corpus(folder):
    document = document_named("targets")
    path = folder / "text.md"
    path.write_text(f"# {document.title}\n\n{document.text}")
    return path


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


def begin(command, processes, devices, folders=None, differing=()):
    """Starts a command in some processes of a job.

    `folders` are theirs to work in, `differing` the flags that the last one has beside others.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    env["PYTHONFAULTHANDLER"] = "1"  # one that hangs tells where, see `ended`
    started = []
    for i in range(processes):
        job = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
        argv = [sys.executable, "-m", "cartridges_jax.cli", *command, f"--model={TEST_MODEL}"]
        argv += ["--dtype=float32", *([*job, f"--process_id={i}"] if processes > 1 else [])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        argv += differing if i == processes - 1 else []
        folder = None if folders is None else folders[i]
        started.append(subprocess.Popen(argv, env=env, cwd=folder, **pipes))
    return started


def ended(started, seconds):
    """What each process has said at its end; those that do not end are shown where they hang."""
    said = []
    for one in started:
        try:
            said.append(one.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            one.send_signal(signal.SIGABRT)
            said.append(one.communicate()[0])
    return said


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
def test_training_that_is_stopped_ends_with_the_same_bits(tmp_path, corpus, study):
    """Killed, or told to stop, which saves at once: all processes at the same step.

    Fifty times with CARTRIDGES_STOPS=50, which takes a quarter of an hour.
    """
    train = ["train", f"--corpus={corpus}", f"--data={study}", *TRAINING, "--num_steps=600"]
    run([*train, f"--out={tmp_path / 'whole'}"], 2, 4)
    rng = random.Random(1)
    for _ in range(STOPS):
        log = tmp_path / "killed" / "metrics.jsonl"
        done = 0 if not log.exists() else len(log.read_text().splitlines())
        started = begin([*train, f"--out={tmp_path / 'killed'}"], 2, 4)
        is_told = rng.random() < 0.5
        goal = done + rng.randrange(is_told, 4)  # before training begins there is nothing to save
        while not log.exists() or len(log.read_text().splitlines()) < goal:
            assert all(one.poll() is None for one in started)
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        if not is_told:
            kill(rng.sample(started, 2))
        else:
            rng.choice(started).send_signal(signal.SIGTERM)  # one of them is told
            said = ended(started, 100)
            if [one.returncode for one in started] == [0, 0]:  # it had come to its end
                break
            assert [one.returncode for one in started] == [143, 143], said
            assert "stopped: " in said[0] and "the same command goes on" in said[0]
            assert int(re.findall(r"at step (\d+)", said[0])[-1]) >= goal
    run([*train, f"--out={tmp_path / 'killed'}"], 2, 4)
    assert_same(tmp_path, "whole", "killed", atol=0)


@pytest.mark.full
def test_a_run_goes_on_with_other_processes_and_another_mesh(tmp_path, corpus, study):
    """It takes the same examples, wherever it is: losses and cartridge are those of one process."""
    train = ["train", f"--corpus={corpus}", f"--data={study}", *TRAINING]
    run([*train, f"--out={tmp_path / 'whole'}"], devices=1)
    moving = f"--out={tmp_path / 'moving'}"
    for steps, processes, devices, mesh in ((2, 2, 4, ["--mesh_model=2", "--fsdp"]), (4, 1, 1, [])):
        started = begin([*train, moving, *mesh, "--checkpoint_every=1"], processes, devices)
        folder = tmp_path / "moving" / "checkpoints"
        while not (folder / str(steps)).exists():
            assert all(one.poll() is None for one in started), started[0].communicate()
            time.sleep(0.01)
        kill(started)
    run([*train, moving, "--checkpoint_every=1"], 4, 2)
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "moving")]
    losses = [[row["loss"] for row in log] for log in logs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert_same(tmp_path, "whole", "moving", atol=1e-4)  # six steps of Adam on four meshes


def run(command, processes=1, devices=1, folders=None):
    """Runs it to its end; returns what each process said."""
    started = begin(command, processes, devices, folders)
    said = ended(started, 400)
    for one, words in zip(started, said, strict=True):
        assert one.returncode == 0, words
    return said


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Conversations about the corpus."""
    folder = tmp_path_factory.mktemp("study")
    run(["synthesize", f"--corpus={write_corpus(folder)}", *STUDY, f"--out={folder / 'data'}"])
    return folder / "data"


def assert_alike(found, wanted):
    """The same words, and the same numbers up to how sums are shared out to devices."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_alike(found[key], value)
    else:
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def assert_same(folder, first, second, atol=1e-5):
    one, two = (Cartridge.load(folder / name / f"{name}.cartridge") for name in (first, second))
    np.testing.assert_allclose(one.keys, two.keys, rtol=0, atol=atol)
    np.testing.assert_allclose(one.values, two.values, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("processes", "devices"),
    [
        (2, 1),
        pytest.param(2, 4, marks=pytest.mark.full),
        pytest.param(4, 2, marks=pytest.mark.full),
    ],
)
def test_processes_write_the_conversations_that_one_writes(tmp_path, corpus, processes, devices):
    study = ["synthesize", f"--corpus={corpus}", *STUDY]
    run([*study, f"--out={tmp_path / 'one'}"], devices=processes * devices)
    first, *others = run([*study, f"--out={tmp_path / 'two'}"], processes, devices)
    assert "conversations about" in first
    assert not any("conversations about" in words for words in others)
    one, two = (ShardSet.read(tmp_path / name, "conversations") for name in ("one", "two"))
    assert set(one.units) == set(two.units) and one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        pytest.param(2, 4, ["--mesh_model=2"], marks=pytest.mark.full),
        (2, 4, ["--mesh_model=2", "--fsdp"]),
        pytest.param(4, 2, [], marks=pytest.mark.full),
    ],
)
def test_processes_train_the_cartridge_that_one_trains(
    tmp_path, corpus, study, processes, devices, mesh
):
    """Also where the targets are scored by all of them first."""
    train = ["train", f"--corpus={corpus}", *TRAINING]
    for name in ("one", "several"):
        shutil.copytree(study, tmp_path / f"data-{name}")
    one = [f"--data={tmp_path / 'data-one'}", f"--out={tmp_path / 'one'}"]
    run([*train, *one, *mesh], devices=8)
    several = [f"--data={tmp_path / 'data-several'}", f"--out={tmp_path / 'several'}"]
    said = run([*train, *several, *mesh], processes, devices)
    assert f"{processes} processes" in said[0] and "trained 8 slots" in said[0]
    assert "trained" not in said[1]
    assert_same(tmp_path, "one", "several")
    lines = (tmp_path / "several" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6  # of the first process alone


@pytest.mark.full
def test_disks_need_not_be_shared(tmp_path, corpus):
    """Each process ends with all units; checkpoints and cartridge are the first one's."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    run(["synthesize", f"--corpus={corpus}", *STUDY, "--out=data"], 2, 1, folders)
    run(["synthesize", f"--corpus={corpus}", *STUDY, f"--out={tmp_path / 'one'}"])
    one = ShardSet.read(tmp_path / "one", "conversations")
    for folder in folders:
        theirs = ShardSet.read(folder / "data", "conversations")
        assert set(theirs.units) == set(one.units) and theirs.fingerprint == one.fingerprint
    (folders[1] / "data" / "conversations.manifest.jsonl").unlink()  # a disk that was lost
    run(["synthesize", f"--corpus={corpus}", *STUDY, "--out=data"], 2, 1, folders)
    train = ["train", f"--corpus={corpus}", "--data=data", *TRAINING, "--out=run"]
    run([*train, "--checkpoint_every=3"], 2, 4, folders)
    one_disk = [f"--data={tmp_path / 'one'}", f"--out={tmp_path / 'run'}"]
    run(["train", f"--corpus={corpus}", *TRAINING, *one_disk], devices=8)
    (tmp_path / "first" / "run").rename(tmp_path / "apart")
    (tmp_path / "apart" / "run.cartridge").rename(tmp_path / "apart" / "apart.cartridge")
    assert_same(tmp_path, "run", "apart")
    assert not (folders[1] / "run" / "checkpoints").exists()


@pytest.mark.full
def test_processes_train_many_cartridges(tmp_path, corpus, study):
    """Their places are split over the devices of all processes."""
    for name in ("one", "two"):
        lines = [
            {
                "corpus": str(corpus),
                "data": str(study),
                "out": str(tmp_path / f"{name}{i}"),
                "seed": i,
            }
            for i in range(5)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = [*TRAINING, "--rows_per_step=2", "--at_once=4"]
    run(["train", f"--jobs={tmp_path / 'one.jsonl'}", *options], devices=4)
    run(["train", f"--jobs={tmp_path / 'two.jsonl'}", *options], 2, 2)
    for i in range(5):
        assert_same(tmp_path, f"one{i}", f"two{i}")


@pytest.mark.full
def test_evaluation_and_demo_in_several_processes(tmp_path, corpus, study):
    """The first process answers and reports; what is scored is shared out."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Where is it?", "answers": ["here"]}\n')
    train = ["train", f"--corpus={corpus}", f"--data={study}", *TRAINING]
    run([*train, f"--out={tmp_path / 'run'}"], devices=8)
    held_out = tmp_path / "held_out"
    run(["synthesize", f"--corpus={corpus}", *STUDY, "--seed=1", f"--out={held_out}"])
    evaluate = [
        "evaluate", f"--cartridge={tmp_path / 'run' / 'run.cartridge'}", f"--corpus={corpus}",
        f"--questions={questions}", f"--held_out={held_out}", "--answer_max_tokens=8",
    ]  # fmt: skip
    results = []
    for name, processes, devices in (("four", 4, 2), ("two", 2, 4), ("one", 1, 8)):
        said = run([*evaluate, f"--out={tmp_path / name}"], processes, devices)
        assert "report: " in said[0] and not any("report: " in words for words in said[1:])
        found = json.loads((tmp_path / name / "results.json").read_text())
        results.append(found)
    for found in results[1:]:
        assert_alike(found["arms"], results[0]["arms"])
        assert found["accuracy"] == results[0]["accuracy"]
    demo = ["demo", f"--corpus={corpus}", "--num_slots=8", "--num_conversations=8",
            "--num_steps=2", "--throughput_batch=0"]  # fmt: skip
    results = []
    for name, processes, devices in (("demo4", 4, 2), ("demo2", 2, 4), ("demo1", 1, 8)):
        said = run([*demo, f"--out={tmp_path / name}"], processes, devices)
        assert "Report:" in said[0] and not any("Report:" in words for words in said[1:])
        assert (tmp_path / name / "report.html").exists()
        [found] = (tmp_path / name).rglob("results.json")
        results.append(json.loads(found.read_text())["arms"])
    for found in results[1:]:
        assert_alike(found, results[0])


def test_processes_that_were_started_differently_are_told(tmp_path, corpus):
    study = ["synthesize", f"--corpus={corpus}", *STUDY, f"--out={tmp_path}"]
    started = begin([*study, "--seed=0"], 2, 1, differing=["--seed=1"])
    said = [one.communicate(timeout=100)[0] for one in started]
    assert all("the study differs between the processes" in words for words in said), said
    assert [one.returncode for one in started] == [2, 2]
