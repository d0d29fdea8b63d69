"""Reading and decoding on a CPU beside transformers and llama.cpp: same weights, same threads.

    python -m experiments.benchmarks.generation --model=smollm2 --llama_python=PATH

Reading is one text of 1,000 tokens. A decode step makes one greedy token in each of 1, 8 or 32 rows
that begin with 16 tokens of their own, behind 1,000 tokens that all rows share (a cartridge of as
many slots; transformers holds them once for each row, llama.cpp once) and without. All three take
turns in one run; of each the median of `--repeats`. transformers has the same weights unpacked, in
float32 and in bfloat16, and the faster of the two counts; llama.cpp has the GGUF file.
`--llama_python` is the interpreter of an environment that has llama-cpp-python (its own, as it
compiles an engine); without it llama.cpp is left out. The result is kept as
experiments/results/generation_MODEL.json. About ten minutes.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers
from absl import app, flags
from etils import epath

from cartridges_jax import load_model
from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.requests import Request
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.sources.locate import open_source
from experiments.benchmarks.measure import product_flops
from experiments.export import export_folder
from experiments.record import write_result

_MODEL = flags.DEFINE_string("model", "smollm2", "smollm2 or a GGUF file.")
_LLAMA = flags.DEFINE_string("llama_python", "", "Interpreter that has llama_cpp; empty: none.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each, alternating.")

SHARED, OWN, STEPS = 1000, 16, 32  # tokens: behind which, of a row, made in a timed run
ROWS = (1, 8, 32)
THEIRS = ("transformers float32", "transformers bfloat16")
Run = Callable[[], float]  # does its work and tells the seconds that it took


class Ours:
    """This package, as its users load it."""

    def __init__(self, model: LanguageModel, ids: np.ndarray):
        self._model, self._ids = model, ids

    def read(self) -> float:
        started = time.perf_counter()
        jax.block_until_ready(self._model.read(self._ids[:SHARED]).kv)
        return time.perf_counter() - started

    def ready(self, rows: int, behind: bool) -> Run:
        prompts = [self._ids[SHARED + i : SHARED + i + OWN].tolist() for i in range(rows)]
        context = self._model.context(self._ids[:SHARED].tolist()) if behind else None

        def steps() -> float:
            engine = self._model.engine
            config = GenerationConfig(1 + STEPS)
            answers = [engine.submit(Request(p, config, context=context)) for p in prompts]
            engine.advance(lambda: all(len(a.token_ids) > 0 for a in answers))
            started = time.perf_counter()
            engine.advance(lambda: all(a.generation for a in answers))
            return time.perf_counter() - started

        return steps


class Transformers:
    """transformers, from a folder of the same weights."""

    def __init__(self, folder: str, dtype: torch.dtype, ids: np.ndarray):
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model.eval()
        self._ids = torch.tensor(ids)

    @torch.no_grad()
    def _forward(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def read(self) -> float:
        started = time.perf_counter()
        self._forward(self._ids[None, :SHARED], transformers.DynamicCache())
        return time.perf_counter() - started

    def ready(self, rows: int, behind: bool) -> Run:
        starts = self._ids.unfold(0, OWN, 1)[SHARED : SHARED + rows]

        def begun() -> tuple[Any, torch.Tensor]:
            cache = transformers.DynamicCache()
            if behind:
                self._forward(self._ids[None, :SHARED], cache)
                cache.batch_repeat_interleave(rows)
            return cache, self._forward(starts, cache)

        cache, first = begun()

        def steps() -> float:
            token = first
            started = time.perf_counter()
            for _ in range(STEPS):
                token = self._forward(token, cache)
            seconds = time.perf_counter() - started
            cache.crop(-STEPS)  # what was made
            return seconds

        return steps


class LlamaCpp:
    """llama.cpp, in a process of another interpreter that times itself when it is told to."""

    def __init__(self, python: str, path: epath.Path, ids: np.ndarray):
        script = epath.Path(__file__).parent / "llama_cpp_peer.py"
        self._process = subprocess.Popen(
            [python, os.fspath(script), os.fspath(path), str(os.cpu_count())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._ids = ids.tolist()

    def _ask(self, **what: Any) -> float:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None and pipe_out is not None
        pipe_in.write(json.dumps(what) + "\n")
        pipe_in.flush()
        line = pipe_out.readline()
        if not line:
            raise SystemExit("llama.cpp's process has ended; see what it wrote above")
        return json.loads(line)["seconds"]

    def read(self) -> float:
        return self._ask(read=self._ids[:SHARED])

    def ready(self, rows: int, behind: bool) -> Run:
        prompts = [self._ids[SHARED + i : SHARED + i + OWN] for i in range(rows)]
        shared = self._ids[:SHARED] if behind else []
        return lambda: self._ask(shared=shared, prompts=prompts, steps=STEPS)


def timed(runs: dict[str, Run], tokens: int) -> dict[str, Any]:
    """Tokens a second of each, in turns after a first run that counts not, and our ratios."""
    found: dict[str, Any] = {}
    seconds = [{name: run() for name, run in runs.items()} for _ in range(_REPEATS.value + 1)]
    for name in runs:
        rates = [tokens / turn[name] for turn in seconds[1:]]
        found[name] = {
            "tokens_per_s": round(statistics.median(rates), 1),
            "low": round(min(rates), 1),
            "high": round(max(rates), 1),
        }
    ours = found["ours"]["tokens_per_s"]
    best = max(found[name]["tokens_per_s"] for name in THEIRS)
    found["over transformers"] = round(ours / best, 2)
    if "llama.cpp" in found:
        found["over llama.cpp"] = round(ours / found["llama.cpp"]["tokens_per_s"], 2)
    return found


def main(_) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    path = epath.Path(open_source(_MODEL.value).where)
    model = load_model(_MODEL.value)
    vocabulary = min(model.config.vocab_size, model.tokenizer.vocab_size)
    ids = np.random.default_rng(0).integers(100, vocabulary, SHARED + OWN + max(ROWS))
    engines: dict[str, Any] = {"ours": Ours(model, ids)}
    with tempfile.TemporaryDirectory() as folder:
        export_folder(folder, load_model(_MODEL.value, dtype="float32").transformer, {}, "")
        for name, dtype in zip(THEIRS, (torch.float32, torch.bfloat16), strict=True):
            engines[name] = Transformers(folder, dtype, ids)
    if _LLAMA.value:
        engines["llama.cpp"] = LlamaCpp(_LLAMA.value, path, ids)

    result: dict[str, Any] = {}
    runs = {name: engine.read for name, engine in engines.items()}
    result[f"read {SHARED} tokens"] = timed(runs, SHARED)
    for behind in (False, True):
        for rows in ROWS:
            runs = {name: engine.ready(rows, behind) for name, engine in engines.items()}
            where = f"behind {SHARED}" if behind else "alone"
            result[f"decode {rows} rows {where}"] = timed(runs, rows * STEPS)
    for name, found in result.items():
        rates = {k: v if isinstance(v, float) else v["tokens_per_s"] for k, v in found.items()}
        print(f"{name:26} {rates}")
    weights = model.config.num_params() - model.config.vocab_size * model.config.hidden_size
    flops = product_flops(dtype=str(np.dtype(model.transformer.blocks.q.weight[...].dtype)))
    result |= {
        "limits": {
            "product_gflops": round(flops / 1e9),
            "read_tokens_per_s": round(flops / (2 * weights)),
        },
        "model": model.identity["file"],
        "repeats": _REPEATS.value,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    out = f"experiments/results/generation_{epath.Path(_MODEL.value).stem}.json"
    write_result(out, result)


if __name__ == "__main__":
    app.run(main)
