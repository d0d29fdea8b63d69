"""The engine on a CPU: many requests behind contexts, beside what they would do without it.

    python -m experiments.benchmarks.engine --parts=budget,shared,transformers
    python -m experiments.benchmarks.engine --parts=self_study --before=CHECKOUT

Parts, of which a result keeps what other runs have measured:
  budget: the paper's protocol. Decode throughput at a fixed KV budget, each request behind a text
    of k tokens of its own or a cartridge of p slots, as many at a time as fit; 128 tokens each,
    mean of `--repeats`. Contexts are random slots: only their size matters.
  shared: 64 requests behind one cartridge of 2,048 slots, and each behind a copy of its own: slots
    read in a step, and its time.
  transformers: prompts of different lengths answered with 48 tokens each, by the engine and by
    transformers' generate in one padded batch; same weights.
  self_study: conversations a second about one chunk and about fifty, by this commit and by that of
    another checkout (`--before`), in turns, each in a process of its own after a run that compiles.

SmolLM2, on all cores. The result is kept as experiments/results/engine.json. About 40 minutes.
"""

import datetime
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath

from cartridges_jax import load_model
from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.engine import Engine
from cartridges_jax.engine.memory import EngineConfig
from cartridges_jax.engine.requests import Context, Request
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.transformer import KV
from experiments.record import write_result

_PARTS = flags.DEFINE_list("parts", ["budget", "shared", "transformers"], "What to measure.")
_BEFORE = flags.DEFINE_string("before", "", "A checkout with a .venv, to compare self-study with.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each.")
_GIB = flags.DEFINE_float("kv_gib", 3.0, "The KV budget.")
_OUT = flags.DEFINE_string("out", "experiments/results/engine.json", "Result file.")

TOKENS = 128  # of an answer
TEXTS = (1024, 2048, 4096, 8000)  # k, tokens of a text
COMPRESSIONS = (10, 38.6, 100)  # k / p
STUDY = ("--num_conversations=64", "--conversations_per_chunk=64"), (
    "--num_conversations=400", "--conversations_per_chunk=8", "--chunk_min_tokens=300",
    "--chunk_max_tokens=500",
)  # fmt: skip


def random_context(model: LanguageModel, engine: Engine, slots: int, seed: int) -> Context:
    """Slots of no meaning."""
    c = model.config
    shape = (c.num_layers, slots, c.num_kv_heads, c.head_dim)
    with jax.set_mesh(model.mesh):
        k, v = jax.random.normal(jax.random.key(seed), (2, *shape), model.dtype)
    return engine.context_of([(slots, slots, lambda: KV(k, v))])


def decode_seconds(engine: Engine, requests: list[Request], steps: int) -> list[float]:
    """Seconds of `--repeats` runs of `steps` tokens in all requests at a time, reading excluded."""
    answers = [engine.submit(request) for request in requests]

    def reach(tokens: int) -> None:
        engine.advance(lambda: all(len(a.token_ids) >= tokens for a in answers))

    reach(4)  # compiled by now
    seconds = []
    for run in range(_REPEATS.value):
        started = time.perf_counter()
        reach(4 + (run + 1) * steps)
        seconds.append(time.perf_counter() - started)
    for answer in answers:
        engine.cancel(answer)
    return seconds


def spread(rates: list[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.mean(rates), 1),
        "low": round(min(rates), 1),
        "high": round(max(rates), 1),
    }


def budget(model: LanguageModel) -> dict[str, Any]:
    """Tokens a second with as many requests as the budget holds."""
    found: dict[str, Any] = {"kv_gib": _GIB.value, "tokens": TOKENS}
    itemsize = jnp.dtype(model.dtype).itemsize
    for k in TEXTS:
        for slots in (k, *(round(k / c) for c in COMPRESSIONS)):
            page = EngineConfig().page_size
            pages = -(-slots // page) + -(-(TOKENS + 16) // page)
            bytes_each = pages * page * model.config.kv_floats_per_token * itemsize
            most = int(_GIB.value * 2**30 // bytes_each)
            rows = min(1 << (most.bit_length() - 1), 256)  # a size that a step has
            engine = Engine(
                model.transformer, model.tokenizer, model.mesh,
                EngineConfig(max_rows=rows, kv_gib=_GIB.value * 1.02),
            )  # fmt: skip
            config = GenerationConfig(TOKENS + 8)
            requests = [
                Request([7, 8, 9], config, 0, random_context(model, engine, slots, i))
                for i in range(rows)
            ]
            seconds = decode_seconds(engine, requests, (TOKENS - 8) // _REPEATS.value)
            steps = (TOKENS - 8) // _REPEATS.value
            name = f"text of {k}" if slots == k else f"text of {k} as {slots} slots"
            found[name] = {
                "requests": rows, "requests_that_fit": most,
                "tokens_per_s": spread([rows * steps / s for s in seconds]),
            }  # fmt: skip
            print(name, found[name], flush=True)
            del engine, requests
    return found


def shared(model: LanguageModel) -> dict[str, Any]:
    """A step of 64 requests behind one cartridge, or each behind its own copy."""
    rows, slots, steps = 64, 2048, 8
    found: dict[str, Any] = {"requests": rows, "slots": slots}
    for name, copies in (("shared", 1), ("unshared", rows)):
        pages = copies * (slots // 128) + 2 * rows + 2
        gib = pages * 128 * model.config.kv_floats_per_token * 4 / 2**30 * 1.01
        engine = Engine(
            model.transformer, model.tokenizer, model.mesh,
            EngineConfig(max_rows=rows, kv_gib=gib),
        )  # fmt: skip
        contexts = [random_context(model, engine, slots, i) for i in range(copies)]
        config = GenerationConfig(steps * _REPEATS.value + 8)
        requests = [Request([7, 8, 9], config, 0, contexts[i % copies]) for i in range(rows)]
        seconds = decode_seconds(engine, requests, steps)
        found[name] = {
            "slots_read_in_a_step": copies * slots,
            "step_ms": spread([1e3 * s / steps for s in seconds]),
        }
        print(name, found[name], flush=True)
        del engine, contexts, requests
    one, many = (found[name]["step_ms"]["mean"] for name in ("shared", "unshared"))
    return found | {"unshared over shared": round(many / one, 2)}


def against_transformers(model: LanguageModel) -> dict[str, Any]:
    """Answers of 48 tokens to 64 prompts of 16 to 256 tokens."""
    import torch
    import transformers

    from experiments.export import export_folder

    rng = np.random.default_rng(0)
    lengths = rng.integers(16, 257, 64)
    prompts = [rng.integers(100, 40_000, n).tolist() for n in lengths]
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        export_folder(folder, load_model("smollm2", dtype="float32").transformer, {}, "")
        theirs = {
            str(dtype): transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            for dtype in (torch.float32, torch.bfloat16)
        }
    width = max(lengths)
    ids = torch.zeros((64, int(width)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1

    def run_theirs(one: Any) -> None:
        with torch.no_grad():
            one.generate(
                ids, attention_mask=mask, max_new_tokens=48, min_new_tokens=48, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    runs: dict[str, Callable[[], Any]] = {
        f"transformers {n}": lambda one=one: run_theirs(one) for n, one in theirs.items()
    }
    runs["ours"] = lambda: model.generate(prompts, max_new_tokens=48, stop_token_ids=())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in range(min(_REPEATS.value, 3) + 1):
        for name, function in runs.items():
            started = time.perf_counter()
            function()
            if run:
                seconds[name].append(time.perf_counter() - started)
    found: dict[str, Any] = {
        name: {"tokens_per_s": spread([64 * 48 / s for s in some])}
        for name, some in seconds.items()
    }
    best = max(v["tokens_per_s"]["mean"] for n, v in found.items() if n != "ours")
    ratio = found["ours"]["tokens_per_s"]["mean"] / best
    return found | {"ours over the faster": round(ratio, 2)}


def self_study() -> dict[str, Any]:
    """Conversations a second of this checkout and of another one."""
    here = epath.Path(__file__).parent.parent.parent
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = epath.Path(folder) / "corpus"
        corpus.mkdir()
        text = (here / "cartridges_jax" / "demo" / "document.md").read_text()
        for i in range(8):
            (corpus / f"{i}.md").write_text(text + f"\n\nCopy {i}.")
        for name, options in zip(("1 chunk", "50 chunks"), STUDY, strict=True):
            rates: dict[str, list[float]] = {}
            for run in range(_REPEATS.value + 1):
                for who, where in (("before", epath.Path(_BEFORE.value)), ("after", here)):
                    out = epath.Path(folder) / f"{name}-{who}-{run}"
                    path = corpus / "0.md" if name == "1 chunk" else corpus
                    command = [
                        os.fspath(where / ".venv/bin/python"), "-m", "cartridges_jax.cli",
                        "synthesize", f"--corpus={path}", f"--out={out}", *options,
                    ]  # fmt: skip
                    started = time.perf_counter()
                    env = {**os.environ, "PYTHONPATH": str(where)}
                    subprocess.run(command, check=True, cwd=where, env=env, capture_output=True)
                    seconds = time.perf_counter() - started
                    manifest = out / "conversations.manifest.jsonl"
                    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
                    count = sum(line.get("records", 0) for line in lines)
                    print(
                        name, who, run, count, "conversations", round(seconds, 1), "s", flush=True
                    )
                    if run:
                        rates.setdefault(who, []).append(count / seconds)
            found[name] = {who: spread([60 * r for r in some]) for who, some in rates.items()}
            before, after = (found[name][who]["mean"] for who in ("before", "after"))
            found[name]["after over before"] = round(after / before, 2)
    return {"unit": "conversations a minute, loading included", **found}


def main(_) -> None:
    parts = {"budget": budget, "shared": shared, "transformers": against_transformers}
    kept = epath.Path(_OUT.value)
    result = json.loads(kept.read_text()) if kept.exists() else {}
    result.pop("made", None)
    for name in _PARTS.value:
        result[name] = self_study() if name == "self_study" else parts[name](load_model("smollm2"))
        result[name]["repeats"] = _REPEATS.value
        result[name]["date"] = datetime.date.today().isoformat()
        print(name, json.dumps(result[name], indent=1), flush=True)
        write_result(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
