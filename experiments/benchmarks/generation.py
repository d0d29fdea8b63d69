"""Prefill and decode tokens/s beside transformers, in one run with the same threads.

    python -m experiments.benchmarks.generation

A random Llama of 60 M parameters in float32 on the CPU: prefill of 512 tokens in each of 8 rows,
and 64 greedy tokens for 32 prompts of 64 tokens; median of `--repeats` alternating runs. Beside it
the limits of this machine, measured in the same run: a large matrix product for prefill, reading
memory for decode. About three minutes on two cores. The result is committed as
experiments/results/generation.json.
"""

import dataclasses
import os
import pathlib
import statistics
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from cartridges_jax.engine.decoding import Decoding, Sampling
from cartridges_jax.models.config import ModelConfig, read_config
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.transformer import Transformer
from cartridges_jax.models.weights import read_weights
from cartridges_jax.sharding import TOKENS_BT, make_mesh, place
from experiments.benchmarks.measure import alternate, product_flops
from experiments.record import write_result

_OUT = flags.DEFINE_string("out", "experiments/results/generation.json", "Result file.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs of each, alternating.")

SHAPE = {
    "vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
}  # fmt: skip
PREFILL_ROWS, PREFILL_TOKENS = 8, 512
DECODE_ROWS, PROMPT_TOKENS, NEW_TOKENS = 32, 64, 64


def summary(times: list[float], tokens: int) -> dict[str, float]:
    rates = [tokens / t for t in times]
    return {"tokens_per_s": statistics.median(rates), "low": min(rates), "high": max(rates)}


@jax.jit
def prefill(model: Transformer, token_ids: jax.Array) -> Any:
    positions = jax.lax.broadcasted_iota(jnp.int32, token_ids.shape, 1, out_sharding=TOKENS_BT)
    hidden, kv = model(token_ids, positions, jnp.zeros_like(token_ids))
    return model.logits(hidden[:, -1:]), kv


def limits(config: ModelConfig) -> dict[str, float]:
    """What the machine could do: products and memory reads, each the best of ten runs."""
    flops = product_flops()
    copied, total = jnp.ones(2**26, jnp.float32), jax.jit(jnp.sum)
    times = alternate({"read": lambda: total(copied).block_until_ready()}, 10)["read"]
    read = copied.nbytes / min(times)
    weights = config.num_params()
    cache = DECODE_ROWS * (PROMPT_TOKENS + NEW_TOKENS / 2) * config.kv_floats_per_token
    per_step = 4 * (weights + cache)  # bytes
    return {
        "product_gflops": flops / 1e9,
        "read_gb_per_s": read / 1e9,
        "prefill_tokens_per_s": flops / (2 * (weights - config.vocab_size * config.hidden_size)),
        "decode_tokens_per_s": DECODE_ROWS
        / max(per_step / read, 2 * weights * DECODE_ROWS / flops),
    }


def main(_) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    theirs: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    mesh = make_mesh(1, 1)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        config = read_config(pathlib.Path(folder))
        ours = read_weights(FolderSource(folder).tensors(), str(folder), config, mesh, jnp.float32)
    rng = np.random.default_rng(0)
    long = rng.integers(3, config.vocab_size, (PREFILL_ROWS, PREFILL_TOKENS)).astype(np.int32)
    prompts = rng.integers(3, config.vocab_size, (DECODE_ROWS, PROMPT_TOKENS)).astype(np.int32)

    def our_prefill() -> None:
        with jax.set_mesh(mesh):
            jax.block_until_ready(prefill(ours, place(mesh, long, TOKENS_BT)))

    @torch.no_grad()
    def their_prefill() -> None:
        theirs(torch.tensor(long), use_cache=True, logits_to_keep=1)

    made: dict[str, list[list[int]]] = {}

    def our_decode() -> None:
        run = Decoding(
            ours, prompts.tolist(), prefix=None, max_new_tokens=NEW_TOKENS,
            sampling=Sampling(), seeds=[0] * DECODE_ROWS, stop_ids=(), mesh=mesh,
        )  # fmt: skip
        run.advance()
        made["ours"] = [ids for ids, _ in run.rows()]

    def their_decode() -> None:
        out = theirs.generate(
            torch.tensor(prompts), attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        made["theirs"] = out[:, PROMPT_TOKENS:].tolist()

    result = {}
    for name, pair, tokens in (
        ("prefill", (our_prefill, their_prefill), PREFILL_ROWS * PREFILL_TOKENS),
        ("decode", (our_decode, their_decode), DECODE_ROWS * NEW_TOKENS),
    ):
        times = alternate(dict(zip(("ours", "theirs"), pair, strict=True)), _REPEATS.value)
        mine, other = (summary(t, tokens) for t in times.values())
        ratio = mine["tokens_per_s"] / other["tokens_per_s"]
        result[name] = {"ours": mine, "transformers": other, "ratio": ratio}
        print(name, {k: round(v["tokens_per_s"]) for k, v in (("ours", mine), ("hf", other))},
              f"ratio {ratio:.2f}")  # fmt: skip
    alike = sum(a == b for a, b in zip(made["ours"], made["theirs"], strict=True))
    result |= {
        "equal_generations": f"{alike} of {DECODE_ROWS}",
        "limits": limits(config),
        "shape": SHAPE | {"parameters": config.num_params()},
        "sizes": {"prefill": [PREFILL_ROWS, PREFILL_TOKENS],
                  "decode": [DECODE_ROWS, PROMPT_TOKENS, NEW_TOKENS]},
        "repeats": _REPEATS.value,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "config": dataclasses.asdict(config),
    }  # fmt: skip
    print({k: round(v, 1) for k, v in result["limits"].items()}, result["equal_generations"])
    write_result(_OUT.value, result)


if __name__ == "__main__":
    app.run(main)
