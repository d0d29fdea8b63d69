"""The whole path on an imported checkpoint of each family: the mechanics, not the figures."""

import json

import pytest

pytest.importorskip("transformers", reason="the extra `parity` is not installed")

from cartridges_jax import Cartridge, SynthesisConfig, cli, load_documents, load_model, synthesize
from cartridges_jax.chat import chat
from tests.families import FAMILIES, write_model
from tests.self_study.scripted import ScriptedClient


@pytest.fixture(params=FAMILIES, scope="module")
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    write_model(folder, FAMILIES[request.param])
    (folder / "text.md").write_text(
        "# The harbour\n\nThe harbour of Lund was built in 1902. It has three piers.\n" * 8
    )
    rows = [
        {"question": "When was it built?", "answers": ["1902", "In 1902."], "type": "year"},
        {"question": "How many piers are there?", "answer": "three"},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_train_evaluate_chat(folder, capsys):
    assert len(list(folder.glob("*.safetensors"))) > 1  # several files with an index
    model, text = f"--model={folder}", f"--corpus={folder / 'text.md'}"
    options = []
    if (folder / "chat_template.jinja").read_text() == FAMILIES["qwen 3"].template:
        options = ["--template_option=enable_thinking=false"]
    data, run = folder / "data", folder / "run"
    # A random model asks nothing: a script does.
    study = SynthesisConfig(num_conversations=24, chunk_min_tokens=40, chunk_max_tokens=120)
    documents = load_documents(folder / "text.md")
    synthesize(load_model(folder), documents, data, study, ScriptedClient())
    assert cli.main(
        ["train", model, text, f"--data={data}", f"--out={run}", "--num_slots=48",
         "--num_steps=3", "--rows_per_step=2", "--row_length=512", *options]
    ) == 0  # fmt: skip
    assert cli.main(
        ["evaluate", model, text, f"--cartridge={run / 'run.cartridge'}",
         f"--questions={folder / 'questions.jsonl'}", f"--held_out={data}",
         f"--out={folder / 'eval'}", "--throughput_batch=2", *options]
    ) == 0  # fmt: skip
    results = json.loads((folder / "eval" / "results.json").read_text())
    assert results["accuracy"]["full KV"]["all"]["n"] == 2
    full, oracle = (results["arms"][name]["held_out"]["kl"] for name in ("full context", "full KV"))
    assert abs(full - oracle) < 1e-4  # the document's KV as a cartridge gives the same distribution

    loaded = load_model(folder, template_options={"enable_thinking": False} if options else None)
    said: list[str] = []
    cartridge = Cartridge.load(run / "run.cartridge")
    # Drawn with a seed each: a random model's likeliest first token may well end the answer.
    questions = ["When was it built?", "/new", "How many piers are there?", "/new", "Who came?"]
    chat(loaded, cartridge, 12, 1.0, questions, said.append)
    # Streamed likewise: at random weights the likeliest tokens are so close to each other that
    # another shape of the same computation can choose another one.
    answers = [
        "".join(loaded.stream(q, cartridge, max_new_tokens=12, temperature=1.0, seed=turn))
        for turn, q in enumerate(questions)
        if q != "/new"
    ]
    assert any(answers)
    assert "".join(said).endswith("\n(new conversation)\n".join(answers) + "\n")
    capsys.readouterr()
    assert cli.main(["info", str(folder)]) == 0
    assert loaded.config.family in capsys.readouterr().out
