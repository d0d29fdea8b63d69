"""What self-study writes: counted over 200 conversations, and read one by one for 50.

    python -m experiments.self_study_sample --model=smollm2 --corpus=cartridges_jax/demo/document.md
    python -m experiments.self_study_sample --summarise

The first command studies a text with the preset "laptop" (resumable, in --work), counts over all
conversations what the selection promises (requests, no copies, nothing of the prompt), and writes
50 of them, drawn at random, into experiments/results/self_study/MODEL_TEXT.jsonl. A person reads
these and fills in two marks: `answerable`, whether the text answers the request, and `right`,
whether the answer is what the text says. The second command prints the shares of all files that
have been read, with intervals.
"""

import json
import random
import re
import tempfile

from absl import app, flags
from etils import epath

from cartridges_jax import SynthesisConfig, load_documents, load_model, preset, synthesize
from cartridges_jax.evaluation.scoring import wilson
from cartridges_jax.self_study.conversation import load_conversations
from cartridges_jax.self_study.seeds import EXAMPLES, SEED_WORDS

_MODEL = flags.DEFINE_string("model", "smollm2", "As in `cartridges synthesize`.")
_CORPUS = flags.DEFINE_string("corpus", "cartridges_jax/demo/document.md", "A text.")
_WORK = flags.DEFINE_string("work", "", "Folder of the conversations; empty: a temporary one.")
_SUMMARISE = flags.DEFINE_bool("summarise", False, "Print the shares of the files that were read.")

COUNT, SAMPLE = 200, 50
RESULTS = epath.Path(__file__).parent / "results" / "self_study"
MARKS = ("answerable", "right")


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def counted(conversations: list) -> dict[str, int]:
    """How many are requests, stand in the text word for word, or speak of the prompt.

    By rules of their own, not those of the selection: a word of the examples counts if it is
    neither in the text nor a usual one.
    """
    told = {word for turns in EXAMPLES.values() for turn in turns for word in plain(turn).split()}
    names = {"kestrel", "quill", "odell", "linden", "elm"} & told
    requests = [c.messages[0]["content"] for c in conversations]
    texts = [plain(c.chunk.title + " " + c.chunk.text) for c in conversations]
    words = [set(plain(r).split()) - set(t.split()) for r, t in zip(requests, texts, strict=True)]
    return {
        "conversations": len(conversations),
        "requests": sum("?" in r for r in requests),
        "copies": sum(plain(r) in t for r, t in zip(requests, texts, strict=True)),
        "of the prompt": sum(bool(w & (names | SEED_WORDS)) for w in words),
        "different requests": len(set(map(plain, requests))),
    }


def study() -> None:
    model, documents = load_model(_MODEL.value), load_documents(_CORPUS.value)
    config = preset(SynthesisConfig, "laptop", num_conversations=COUNT)
    with tempfile.TemporaryDirectory() as temporary:
        shards = synthesize(model, documents, _WORK.value or temporary, config)
        found = [c for i in sorted(shards.units) for c in load_conversations(shards, i)][:COUNT]
    name = f"{epath.Path(_MODEL.value).stem}_{epath.Path(_CORPUS.value).stem}"
    print(name, counted(found))
    rows = [
        {
            "family": c.family,
            "request": c.messages[0]["content"],
            "answer": c.messages[1]["content"],
            **dict.fromkeys(MARKS),
        }
        for c in random.Random(0).sample(found, SAMPLE)
    ]
    head = {
        "model": model.identity["file"] or model.name,
        "text": _CORPUS.value,
        "sha256": documents[0].sha256[:12],  # a text may change after it was studied
        **counted(found),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *rows)]
    (RESULTS / f"{name}.jsonl").write_text("".join(lines))


def summarise() -> None:
    for path in sorted(RESULTS.glob("*.jsonl")):
        head, *rows = map(json.loads, path.read_text().splitlines())
        print(path.stem, head)
        for mark in MARKS:
            marks = [row[mark] for row in rows if row[mark] is not None]
            share = wilson(sum(marks), len(marks))
            print(f"  {mark:11} {100 * share.value:.0f} % ({100 * share.low:.0f} to "
                  f"{100 * share.high:.0f}), n = {share.n}")  # fmt: skip


def main(_) -> None:
    summarise() if _SUMMARISE.value else study()


if __name__ == "__main__":
    app.run(main)
