"""The command line as people use it: the whole path, help, and bad input."""

import dataclasses
import json
import re

import pytest

from cartridges_jax import cli
from cartridges_jax.evaluation import speed
from cartridges_jax.shards import ShardSet
from tests.conftest import TEST_MODEL, document_named, make_tiny_model, questions_named

MODEL = (f"--model={TEST_MODEL}", "--dtype=float32")


# The test model asks few of the questions that it is told to ask.
STUDY = (
    "--num_conversations=12", "--conversations_per_chunk=32", "--chunk_min_tokens=100",
    "--chunk_max_tokens=200", "--question_share=1", "--num_examples=0", "--answer_max_tokens=32",
)  # fmt: skip


def run(argv):
    """The command line, with the test model where a command takes one and none is named."""
    takes_model = argv and argv[0] in ("demo", "synthesize", "train", "evaluate", "chat")
    if takes_model and not any(a.startswith(("--model=", "--help")) for a in argv):
        argv = [*argv, *MODEL]
    return cli.main(argv)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    document = document_named("cli")
    (folder / "text.md").write_text(f"# {document.title}\n\n{document.text}\n")
    lines = [json.dumps(dataclasses.asdict(q)) + "\n" for q in questions_named("cli")]
    (folder / "questions.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    """A data folder and a cartridge made by the command line."""
    out = tmp_path_factory.mktemp("made")
    text = corpus / "text.md"
    assert run(["synthesize", f"--corpus={text}", f"--out={out / 'data'}", *STUDY]) == 0
    options = ["--num_slots=16", "--num_steps=3", "--rows_per_step=2", "--row_length=256"]
    train = ["train", f"--corpus={text}", f"--data={out / 'data'}", f"--out={out / 'run'}"]
    assert run([*train, *options]) == 0
    return out


def fails(capsys, argv, *words):
    """Runs a command that must end with status 2 and one sentence that holds the words."""
    assert run(argv) == 2
    err = capsys.readouterr().err.strip().splitlines()
    last = err[-1]
    assert last.startswith("error: ") and "Traceback" not in "".join(err)
    for word in words:
        assert word in last, last


def test_evaluate_writes_results_and_a_report(made, corpus, capsys, monkeypatch):
    monkeypatch.setattr(speed, "RUN_TOKENS", 8)
    argv = [
        "evaluate", f"--cartridge={made / 'run' / 'run.cartridge'}",
        f"--corpus={corpus / 'text.md'}",
        f"--questions={corpus / 'questions.jsonl'}", f"--held_out={made / 'data'}",
        f"--out={made / 'eval'}", "--throughput_batch=2", "--answer_max_tokens=32",
    ]  # fmt: skip
    assert run(argv) == 0
    results = json.loads((made / "eval" / "results.json").read_text())
    assert set(results["arms"]) == {
        "no context",
        "full context",
        "full KV",
        "truncated",
        "cartridge",
    }
    assert results["accuracy"]["full KV"]["all"] == results["accuracy"]["full context"]["all"]
    assert results["arms"]["cartridge"]["kv_bytes"] == 16 * 12 * 1024
    held = {name: arm["held_out"]["kl"] for name, arm in results["arms"].items()}
    assert held["full context"] < held["cartridge"] < held["no context"]
    page = (made / "eval" / "report.html").read_text()
    assert page.count("<svg") == 3 and "Side by side" in page
    assert "full context" in capsys.readouterr().out


def test_info_explains_every_file(made, capsys):
    for path, words in (
        (made / "data", ["conversations", "targets", "dropped"]),
        (made / "run" / "run.cartridge", ["16 (1 frozen)", "test_model", "text.md"]),
        (made / "run", ["16 (1 frozen)"]),
        (TEST_MODEL, ["parameters", "window"]),
        (made / "eval" / "results.json", ["questions right", "nats a token"]),
    ):
        assert run(["info", str(path)]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words), out
    assert run(["info", "--json", str(made / "data")]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] >= 0


def test_chat_answers_and_remembers(made, trained, capsys):
    from cartridges_jax import Cartridge
    from cartridges_jax.chat import chat

    said: list[str] = []
    cartridge = Cartridge.load(made / "run" / "run.cartridge")
    lines = ["Who lives in Oslo?", "", "/new", "/etc/hosts \udcff?", "/quit", "never read"]
    chat(trained, cartridge, 24, 0.0, lines, said.append)
    text = "".join(said)
    assert text.startswith("Ask about text.md") and "(new conversation)" in text
    [want] = trained.generate(["Who lives in Oslo?"], cartridge, max_new_tokens=24)
    assert want.text in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_lists_every_flag_with_its_default(name, capsys):
    assert run([name, "--help"]) == 0
    out = capsys.readouterr().out
    flags = out.count("\n  --")
    said = re.findall(r"\((?:default: |default by preset: |required\))", out)
    assert flags and len(said) == flags


def test_usage_and_version(capsys):
    assert run(["--help"]) == 0 and "evaluate" in capsys.readouterr().out
    assert run(["--version"]) == 0 and capsys.readouterr().out.strip() == "0.1.0"
    assert run([]) == 2
    assert run(["fly"]) == 2


# ---- bad input: one sentence, status 2, nothing destroyed


def test_a_missing_flag_and_an_unknown_one(capsys):
    fails(capsys, ["synthesize", "--out=x"], "corpus")
    fails(capsys, ["demo", "--colour=red"], "colour")
    fails(capsys, ["demo", "--num_slots=many"], "num_slots")
    fails(capsys, ["demo", "red"], "'red' is no flag")


def test_a_missing_file(capsys, tmp_path):
    fails(capsys, ["demo", f"--corpus={tmp_path / 'none.txt'}", f"--out={tmp_path}"], "none.txt")
    fails(capsys, ["info", str(tmp_path / "none")], "there is no file or folder")
    fails(capsys, ["chat", f"--cartridge={tmp_path / 'a.cartridge'}"], "there is no cartridge file")
    fails(capsys, ["demo", f"--model={tmp_path / 'm'}"], "there is no model")


def test_a_binary_file_and_an_empty_folder(capsys, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0\1\2")
    (tmp_path / "empty").mkdir()
    out = f"--out={tmp_path / 'out'}"
    fails(
        capsys,
        ["demo", f"--corpus={tmp_path / 'a.bin'}", out],
        "a.bin",
        "is no text that can be read",
    )
    fails(capsys, ["demo", f"--corpus={tmp_path / 'empty'}", out], "holds no text")


def test_a_document_shorter_than_the_prefix(capsys, tmp_path, made, corpus):
    (tmp_path / "short.txt").write_text("Ada Brown lives in Oslo.")
    fails(
        capsys, ["demo", f"--corpus={tmp_path / 'short.txt'}", f"--out={tmp_path / 'out'}"],
        "fewer than num_slots=176",
    )  # fmt: skip
    argv = [
        "train",
        f"--corpus={corpus / 'text.md'}",
        f"--data={made / 'data'}",
        f"--out={tmp_path}",
    ]
    fails(capsys, [*argv, "--num_slots=900"], "fewer than the 900 slots")


def test_a_prefix_of_zero(capsys, tmp_path, made, corpus):
    fails(
        capsys, ["demo", "--num_slots=0", f"--out={tmp_path}"], "num_slots must be above 0, got 0"
    )
    argv = [
        "train",
        f"--corpus={corpus / 'text.md'}",
        f"--data={made / 'data'}",
        f"--out={tmp_path}",
    ]
    fails(capsys, [*argv, "--num_slots=0"], "num_slots must be above 0, got 0")
    for slots in (1, 1600):  # before hours of self-study
        argv = ["demo", f"--corpus={corpus / 'text.md'}", f"--out={tmp_path / 'out'}"]
        words = f"num_slots={slots}" if slots > 1000 else "num_slots must be from 4 to"
        fails(capsys, [*argv, f"--num_slots={slots}"], words)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--max_tokens=0", "max_new_tokens must be above 0"),
        ("--max_tokens=1000000", "lower max_tokens"),
        ("--temperature=-1", "temperature=-1.0"),
        ("--temperature=nan", "temperature=nan"),
    ],
)
def test_a_chat_that_could_answer_nothing(capsys, made, flag, words):
    fails(capsys, ["chat", f"--cartridge={made / 'run' / 'run.cartridge'}", flag], words)


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    fails(capsys, ["demo", f"--out={tmp_path / 'file' / 'x'}"], "cannot write to the output folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cartridge_of_another_model(capsys, tmp_path, corpus):
    tiny = make_tiny_model()
    cartridge = tiny.kv_as_cartridge(range(3, 20))
    cartridge.save(tmp_path / "a.cartridge")
    argv = ["chat", f"--cartridge={tmp_path / 'a.cartridge'}"]
    fails(capsys, argv, "3 layers, 4 kv heads of size 10", "test_model has 6")


def test_other_text_than_was_studied(capsys, tmp_path, made, corpus):
    (tmp_path / "text.md").write_text("Ada Brown lives in Oslo. " * 30)
    argv = ["train", f"--corpus={tmp_path / 'text.md'}", f"--data={made / 'data'}"]
    fails(capsys, [*argv, f"--out={tmp_path / 'run'}"], "are about other text: corpus[0].sha256")
    argv = ["evaluate", f"--cartridge={made / 'run' / 'run.cartridge'}", f"--out={tmp_path}"]
    argv += [f"--corpus={tmp_path / 'text.md'}", f"--questions={corpus / 'questions.jsonl'}"]
    fails(capsys, argv, "the cartridge was made of other text")


def test_a_demo_folder_of_another_seed_is_left_alone(capsys, tmp_path, corpus):
    (tmp_path / "data").mkdir()
    ShardSet.open(tmp_path / "data", "conversations", {"seed": 5}).write(0, [])
    argv = ["demo", f"--corpus={corpus / 'text.md'}", f"--out={tmp_path}"]
    fails(capsys, argv, "choose another folder")


def test_a_mesh_that_does_not_fit(capsys, tmp_path):
    fails(capsys, ["demo", "--mesh_data=99", f"--out={tmp_path}"], "99x1 mesh needs 99 devices")
    fails(capsys, ["demo", "--mesh_model=5", f"--out={tmp_path}"], "cannot be shared by 5")


def test_paths_that_are_not_local(capsys, tmp_path):
    fails(capsys, ["demo", "--out=gs://bucket/x"], "not on a local disk")
    argv = ["demo", "--corpus=gs://bucket/x.txt", f"--out={tmp_path}"]
    fails(capsys, argv, "not on a local disk")
    fails(capsys, ["synthesize", "--corpus=", "--out="], "a path is empty")


def test_a_cut_cartridge_file(capsys, tmp_path, made):
    data = (made / "run" / "run.cartridge").read_bytes()
    (tmp_path / "a.cartridge").write_bytes(data[: len(data) // 2])
    fails(capsys, ["chat", f"--cartridge={tmp_path / 'a.cartridge'}"], "not a whole cartridge file")
    fails(capsys, ["info", str(tmp_path / "a.cartridge")], "not a whole cartridge file")


def test_data_that_is_not_there_or_damaged(capsys, tmp_path, made, corpus):
    argv = ["train", f"--corpus={corpus / 'text.md'}", f"--out={tmp_path / 'run'}"]
    fails(capsys, [*argv, f"--data={tmp_path}"], "there are no targets")
    folder = tmp_path / "data"
    folder.mkdir()
    for file in (made / "data").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    next(folder.glob("targets-00000-*")).write_bytes(b"")
    fails(capsys, [*argv, f"--data={folder}"], "targets-00000", "damaged")


def test_nothing_to_evaluate(capsys, tmp_path, made, corpus):
    argv = ["evaluate", f"--cartridge={made / 'run' / 'run.cartridge'}", f"--out={tmp_path}"]
    fails(capsys, [*argv, f"--corpus={corpus / 'text.md'}"], "needs questions with answers")
