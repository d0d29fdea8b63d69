"""The file of `train --jobs`: what its lines may say, and the cartridges that come of it."""

import json

import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.cli import main
from cartridges_jax.corpus import read_corpus
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.jobs_file import read_jobs
from cartridges_jax.errors import InputError
from experiments.embedded_world.text_rows import text_targets
from tests.conftest import TEST_MODEL


@pytest.fixture
def job(tmp_path):
    (tmp_path / "text.md").write_text("Ada Brown lives in Oslo. She works as a baker. " * 20)
    places = {"corpus": "text.md", "data": "data", "out": "out"}
    return {name: str(tmp_path / where) for name, where in places.items()}


def write(tmp_path, *lines):
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return file


def test_a_line_wins_over_the_flags(tmp_path, job):
    file = write(tmp_path, job, "", job | {"num_slots": 7, "learning_rate": 1, "loss": "tail"})
    first, second = read_jobs(file, TrainConfig(num_slots=5, num_steps=9))
    assert (first.config.num_slots, first.config.num_steps) == (5, 9)
    assert (second.config.num_slots, second.config.learning_rate) == (7, 1.0)
    assert second.config.loss == "tail" and second.config.num_steps == 9
    assert first.documents[0].text.startswith("Ada Brown") and first.out == job["out"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: a job is an object with corpus, data, out"),
        ({"data": ""}, "line 2: data must name a file or folder, got ''"),
        ({"out": 3}, "line 2: out must name a file or folder, got 3"),
        ({"preset": "paper"}, "line 2: 'preset' is neither"),
        ({"slots": 3}, "line 2: 'slots' is neither corpus, data, out nor a setting"),
        ({"num_slots": "3"}, "line 2: num_slots must be of type int, got '3'"),
        ({"num_slots": True}, "line 2: num_slots must be of type int, got True"),
        ({"num_steps": 0}, "line 2: num_steps must be above 0"),
        ({"loss": "none"}, "line 2: loss must be one of"),
        ({"corpus": "/nowhere"}, "line 2: "),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, job, change, words):
    line = change if isinstance(change, str) else job | change
    with pytest.raises(InputError, match=r"jobs\.jsonl, ") as raised:
        read_jobs(write(tmp_path, job, line), TrainConfig())
    assert words in str(raised.value)


def test_a_file_without_jobs_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no job in"):
        read_jobs(write(tmp_path, "", " "), TrainConfig())
    with pytest.raises(InputError, match="cannot read the jobs in"):
        read_jobs(tmp_path / "none", TrainConfig())


def test_the_command_trains_all_and_tells_of_those_that_failed(tmp_path, job, trained, capsys):
    rows = {"num_rows": 20, "min_tokens": 10, "max_tokens": 60}
    text_targets(trained, read_corpus(job["corpus"]).documents, job["data"], **rows)
    lines = [job | {"out": str(tmp_path / name), "seed": i} for i, name in enumerate("abc")]
    lines[1]["num_slots"] = 9999  # more than the text has tokens
    argv = [
        "train", f"--jobs={write(tmp_path, *lines)}", f"--model={TEST_MODEL}", "--num_slots=6",
        "--num_steps=2", "--row_length=64", "--dtype=float32", "--mesh_data=1", "--at_once=2",
    ]  # fmt: skip
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out.count("trained 6 slots on") == 2
    assert f"1 of 3 jobs failed: {tmp_path / 'b'}: " in err and "9999 slots" in err
    for name in "ac":
        assert Cartridge.load(tmp_path / name / f"{name}.cartridge").num_slots == 6
    assert main([*argv, f"--corpus={job['corpus']}"]) == 2
    assert "leave the flags" in capsys.readouterr().err
    assert main(["train", "--out=x", "--data=y"]) == 2
    assert "--corpus must be given" in capsys.readouterr().err
    assert main(["train", "--at_once=2", f"--corpus={job['corpus']}"]) == 2
    assert "--at_once is of --jobs" in capsys.readouterr().err
