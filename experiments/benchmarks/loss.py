"""The distillation loss with its gradient, beside whole logits in jax and torch.

    python -m experiments.benchmarks.loss

Float32 on the CPU: 3 rows of 512 tokens with targets on the last third, width 512, a vocabulary of
128,256. Ours against the same loss from the logits of all tokens (what a model's forward returns),
and of the targets alone; in jax and in torch, in turn, `--repeats` times. Memory is what XLA
allocates beside arguments and results, and for torch the growth of the process. Beside them the
time of the two products of the targets at the speed of a large one. About eight minutes on two
cores. The result is committed as experiments/results/loss.json.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from flax import nnx

from cartridges_jax.distillation.loss import Targets, distillation_loss
from cartridges_jax.models.config import parse_config
from cartridges_jax.models.transformer import initialize
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, make_mesh, place
from experiments.benchmarks.measure import PeakMemory, alternate, product_flops, spread
from experiments.model_shapes import LLAMA_3_2_1B
from experiments.record import write_result

_OUT = flags.DEFINE_string("out", "experiments/results/loss.json", "Result file.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs of each form, in turn.")

ROWS, TOKENS, TARGETS, WIDTH, TOP = 3, 512, 171, 512, 20
VOCABULARY = LLAMA_3_2_1B.vocab_size


MODEL_FIELDS = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def made() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    index = np.arange(TOKENS - TARGETS - 1, TOKENS - 1)
    ids = rng.integers(0, VOCABULARY // TOP, (ROWS, TARGETS, TOP)) + np.arange(TOP) * (
        VOCABULARY // TOP
    )
    p = rng.dirichlet(np.full(TOP, 0.5), (ROWS, TARGETS)) * 0.95 + 1e-9
    return {
        "hidden": rng.standard_normal((ROWS, TOKENS, WIDTH), np.float32),
        "head": rng.standard_normal((VOCABULARY, WIDTH), np.float32) * np.float32(0.05),
        "index": np.broadcast_to(index, (ROWS, TARGETS)).astype(np.int32),
        "ids": ids.astype(np.int32),
        "t": np.log(p).astype(np.float32),
        "weight": np.ones((ROWS, TARGETS), np.float32),
    }


def our_form(x: dict[str, np.ndarray], mesh: Any) -> tuple[Any, tuple[Any, ...]]:
    """The compiled loss with its gradient, and its arguments."""
    with jax.set_mesh(mesh):
        model = initialize(parse_config(MODEL_FIELDS), seed=0)
        model.embedding.weight = nnx.Param(place(mesh, x["head"], jax.P(MODEL, None)))
        names = ("index", "ids", "t", "weight")
        targets = Targets(*(place(mesh, x[n], jax.P(DATA)) for n in names))
        hidden = place(mesh, x["hidden"], ACT_BTD)

        def loss(hidden, model, targets):
            return jnp.sum(distillation_loss(model, hidden, targets).loss)

        arguments = (hidden, model, targets)
        return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile(), arguments


def logits_form(x: dict[str, np.ndarray], all_tokens: bool) -> tuple[Any, tuple[Any, ...]]:
    """The same from logits that exist as a whole, on one device without a mesh."""
    arguments = tuple(jnp.asarray(a) for a in x.values())

    def picked(x, index):
        return jnp.take_along_axis(x, index[..., None], axis=1)

    def loss(hidden, head, index, ids, t, weight):
        if all_tokens:
            logits = picked(jnp.einsum("BTD,VD->BTV", hidden, head), index)
        else:
            logits = jnp.einsum("BTD,VD->BTV", picked(hidden, index), head)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), ids, axis=-1)
        return -jnp.sum(jnp.exp(t) * weight[..., None] * found)

    return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile(), arguments


def torch_form(x: dict[str, np.ndarray], all_tokens: bool) -> Callable[[], tuple[Any, Any]]:
    head, hidden = torch.tensor(x["head"]), torch.tensor(x["hidden"], requires_grad=True)
    index, ids = torch.tensor(x["index"]).long(), torch.tensor(x["ids"]).long()
    p = torch.tensor(x["t"]).exp()

    def both() -> tuple[Any, Any]:
        hidden.grad = None
        if all_tokens:
            logits = hidden @ head.T
            rows = [logits[b, index[b]] for b in range(ROWS)]
        else:
            rows = [hidden[b, index[b]] @ head.T for b in range(ROWS)]
        loss = torch.zeros(())
        for b, row in enumerate(rows):
            loss = loss - (p[b] * torch.log_softmax(row, dim=-1).gather(-1, ids[b])).sum()
        loss.backward()
        return loss.detach(), hidden.grad

    return both


def main(_) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    x, mesh, peak = made(), make_mesh(1, 1), product_flops()
    compiled = {
        "ours": our_form(x, mesh),
        "logits of all tokens": logits_form(x, True),
        "logits of targets": logits_form(x, False),
    }
    by_torch = {
        "torch, logits of all tokens": torch_form(x, True),
        "torch, logits of targets": torch_form(x, False),
    }
    value, gradient = compiled["ours"][0](*compiled["ours"][1])
    others = {n: c(*a) for n, (c, a) in compiled.items()} | {n: f() for n, f in by_torch.items()}
    for name, (other, d_hidden) in others.items():
        np.testing.assert_allclose(value, other, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(gradient, d_hidden, atol=1e-4, err_msg=name)

    def runner(c: Any, arguments: tuple) -> Callable[[], object]:
        return lambda: jax.block_until_ready(c(*arguments))

    forms = {name: runner(*pair) for name, pair in compiled.items()} | by_torch
    rows: dict[str, Any] = {n: spread(t) for n, t in alternate(forms, _REPEATS.value).items()}
    for name, (c, _) in compiled.items():
        rows[name]["memory_mib"] = round(c.memory_analysis().temp_size_in_bytes / 2**20, 1)
    for name, function in by_torch.items():
        with PeakMemory() as memory:
            function()
        rows[name]["memory_mib"] = round((memory.peak - memory.before) / 2**20, 1)
    ours = rows["ours"]
    for name, row in rows.items():
        print(name, row)
        if name != "ours":
            row["speed_ratio"] = round(row["median_ms"] / ours["median_ms"], 2)
            row["our_memory_share"] = round(ours["memory_mib"] / row["memory_mib"], 3)
    write_result(_OUT.value, {
        "shape": {"rows": ROWS, "tokens": TOKENS, "targets": TARGETS, "width": WIDTH,
                  "vocabulary": VOCABULARY, "dtype": "float32", "repeats": _REPEATS.value},
        "torch": torch.__version__, "product_gflops": round(peak / 1e9),
        "limit_ms": round(2 * 2 * ROWS * TARGETS * WIDTH * VOCABULARY / peak * 1e3, 1),
        "forms": rows,
    })  # fmt: skip


if __name__ == "__main__":
    app.run(main)
