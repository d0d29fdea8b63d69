"""An epoch of distillation beside Hugging Face PEFT's CARTRIDGE, on the same data.

    python -m experiments.benchmarks.train_step

A random small Llama, conversations of 16 to 700 random tokens whose last third has targets (20 ids
with probabilities, drawn so that a prefix can learn them), a cartridge of 128 slots that starts
from the same keys and values, Adam with clipping at the same rate. We pack rows of 2,048 tokens;
PEFT trains as its example does: padded batches, whole logits, the loss row by row; 32 rows at a
time and, as that needs much memory, 4 rows at a time whose gradients are added up. Each side runs
in a process of its own, in turn, with the same two threads; a first step compiles and is not timed.
The loss of one batch is computed by all, to show that it is the same. About 40 minutes on two CPU
cores. The result is committed as experiments/results/train_step.json, with the loss curves as
train_step.png.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks.measure import PeakMemory

_OUT = flags.DEFINE_string("out", "experiments/results/train_step.json", "Result file.")
_RUNS = flags.DEFINE_integer("runs", 2, "Epochs of each side, in turn.")
_FOLDER = flags.DEFINE_string("folder", None, "Only train on this folder and print the figures.")

SHAPE = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 32,
    "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 4096,
    "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
}  # fmt: skip
VOCABULARIES = (4096, 32_768)
CONVERSATIONS, SHORTEST, LONGEST = 256, 16, 700
SLOTS, TOP, RATE = 128, 20, 1e-2
PADDED_ROWS = 32  # conversations of a PEFT step
SIDES = {"ours": 0, "peft": PADDED_ROWS, "peft, 4 rows at a time": 4}  # PEFT's rows at a time
_SIDE = flags.DEFINE_enum("side", "ours", list(SIDES), "Who trains on --folder.")
PACKED_ROWS = 6  # of 2,048 tokens: about as many conversations
ROW_LENGTH = 2048


def make_data(folder: pathlib.Path, vocabulary: int) -> None:
    """Writes the model, the records and the first slots' tokens."""
    import torch
    import transformers

    from cartridges_jax.distillation.targets import SHARDS, encode_record, row_sizes
    from cartridges_jax.shards import ShardSet

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, vocab_size=vocabulary)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    usual = 1 / (np.arange(vocabulary - 3) + 5.0)  # some tokens are likely everywhere
    records = []
    for _ in range(CONVERSATIONS):  # a position's ids may repeat, which this loss allows
        n = int(rng.integers(SHORTEST, LONGEST + 1))
        tokens = rng.integers(3, vocabulary, n)
        index = np.arange(n - max(1, n // 3) - 1, n - 1)
        ids = 3 + rng.choice(vocabulary - 3, (len(index), TOP), p=usual / usual.sum())
        ids = 3 + (ids - 3 + np.arange(TOP) * 97) % (vocabulary - 3)
        p = -np.sort(-rng.dirichlet(np.full(TOP, 0.3), len(index)), axis=-1) * 0.95 + 1e-9
        records.append(encode_record(tokens, index, ids, np.log(p)))
    shards = ShardSet.open(folder / "data", SHARDS, {})
    shards.write(0, records, **row_sizes(records))


def train_ours(folder: pathlib.Path) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.distillation.config import TrainConfig
    from cartridges_jax.distillation.dataset import PackedData, RowShape, unpacked_rows
    from cartridges_jax.distillation.step import (
        begun,
        graph_of,
        make_train_step,
        no_cartridges,
        place_batch,
        put,
    )
    from cartridges_jax.distillation.targets import SHARDS, decode_record
    from cartridges_jax.models.config import read_config
    from cartridges_jax.models.sources.folder import FolderSource
    from cartridges_jax.models.weights import read_weights
    from cartridges_jax.sharding import head_axis, make_mesh, place
    from cartridges_jax.shards import ShardSet

    mesh, config = make_mesh(1, 1), read_config(folder / "model")
    model = read_weights(
        FolderSource(folder / "model").tensors(), "the model", config, mesh, jnp.float32
    )
    L, K, H = config.num_layers, config.num_kv_heads, config.head_dim
    slots = np.load(folder / "slots.npy").reshape(SLOTS, L, 2, K, H).transpose(2, 1, 0, 3, 4)
    shards = ShardSet.read(folder / "data", SHARDS)
    packed = PackedData(shards, RowShape(ROW_LENGTH, ROW_LENGTH // 2), PACKED_ROWS, seed=0)
    # The rate has no warm-up here and stays: what PEFT's side does.
    settings = TrainConfig(learning_rate=RATE, warmup_steps=0, num_steps=10**9, num_slots=SLOTS)
    with jax.set_mesh(mesh):
        heads = P(None, None, head_axis(K), None)
        cartridge = Cartridge(*(place(mesh, x, heads) for x in slots))
        one = begun(cartridge, settings)
        state, given = put(no_cartridges(one, 1, SLOTS), 0, one)
        step = make_train_step(graph_of(settings))
        copied = jax.tree.map(jnp.copy, state)
    batches = iter(packed.batches())
    first = next(batches)

    def run(state: Any, batch: dict[str, np.ndarray]) -> tuple[Any, float]:
        with jax.set_mesh(mesh):
            parts = {name: x[None] for name, x in batch.items()}
            state, figures = step(state, given, model, place_batch(mesh, parts))
            return state, float(figures["loss"][0])

    with PeakMemory() as memory:
        first_rows = [decode_record(r) for r in shards.records(0)[:PACKED_ROWS]]
        _, probe = run(copied, unpacked_rows(first_rows, PACKED_ROWS))
        run(jax.tree.map(jnp.copy, state), first)  # compiles
        losses, tokens, seen = [], 0, 0
        started = time.perf_counter()
        batch = first
        while seen < CONVERSATIONS:
            state, loss = run(state, batch)
            losses.append(loss)
            tokens += real_tokens(batch)
            seen += conversations(batch)
            batch = next(batches)
        seconds = time.perf_counter() - started
    return report(memory, probe, losses, tokens, seconds)


def real_tokens(batch: dict[str, np.ndarray]) -> int:
    """Tokens of conversations; padding is zeros."""
    return int((batch["token_ids"] > 0).sum())


def conversations(batch: dict[str, np.ndarray]) -> int:
    pairs = zip(batch["segment_start"], batch["token_ids"], strict=True)
    return sum(len(np.unique(start[tokens > 0])) for start, tokens in pairs)


def train_peft(folder: pathlib.Path, rows_at_a_time: int) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    from cartridges_jax.distillation.targets import SHARDS, decode_record
    from cartridges_jax.shards import ShardSet

    torch.set_num_threads(os.cpu_count() or 1)
    base: Any = transformers.LlamaForCausalLM.from_pretrained(folder / "model")
    settings = peft.CartridgeConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=SLOTS, num_frozen_tokens=1
    )
    model: Any = peft.get_peft_model(base, settings)
    slots = torch.tensor(np.load(folder / "slots.npy"))
    model.prompt_encoder["default"].load_prompt_embeddings(slots)
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = [decode_record(r) for r in ShardSet.read(folder / "data", SHARDS).records(0)]

    def summed_loss(batch: list[dict[str, np.ndarray]]) -> torch.Tensor:
        longest = max(len(r["token_ids"]) for r in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for i, row in enumerate(batch):
            ids[i, : len(row["token_ids"])] = torch.tensor(row["token_ids"])
            mask[i, : len(row["token_ids"])] = 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        total = torch.zeros(())
        for i, row in enumerate(batch):
            said = torch.log_softmax(logits[i, torch.tensor(row["target_index"])], dim=-1)
            found = said.gather(-1, torch.tensor(row["top_ids"], dtype=torch.long))
            total = total - (torch.tensor(row["top_logprobs"]).exp() * found).sum()
        return total

    def step(optimizer: Any, batch: list[dict[str, np.ndarray]]) -> float:
        optimizer.zero_grad()
        mean = 0.0
        for at in range(0, len(batch), rows_at_a_time):
            loss = summed_loss(batch[at : at + rows_at_a_time]) / targets_of(batch)
            loss.backward()
            mean += float(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return mean

    def fresh() -> Any:
        return torch.optim.Adam(trained, lr=RATE, betas=(0.9, 0.95))

    with PeakMemory() as memory:
        with torch.no_grad():
            first = rows[:PACKED_ROWS]
            probe = sum(float(summed_loss([row])) for row in first) / targets_of(first)
        start = [p.detach().clone() for p in trained]
        step(fresh(), rows[:PADDED_ROWS])  # warms up
        with torch.no_grad():
            for p, x in zip(trained, start, strict=True):
                p.copy_(x)
        order = np.random.default_rng(0).permutation(len(rows))
        optimizer, losses, tokens = fresh(), [], 0
        started = time.perf_counter()
        for at in range(0, len(rows), PADDED_ROWS):
            batch = [rows[i] for i in order[at : at + PADDED_ROWS]]
            losses.append(step(optimizer, batch))
            tokens += sum(len(r["token_ids"]) for r in batch)
        seconds = time.perf_counter() - started
    return report(memory, probe, losses, tokens, seconds)


def targets_of(batch: list[dict[str, np.ndarray]]) -> int:
    return sum(len(row["target_index"]) for row in batch)


def report(
    memory: PeakMemory, probe: float, losses: list[float], tokens: int, seconds: float
) -> dict[str, Any]:
    return {
        "tokens_per_s": round(tokens / seconds, 1),
        "memory_mib": round((memory.peak - memory.before) / 2**20),
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "loss_of_the_same_batch": probe,
        "losses": losses,
    }


def run_side(side: str, folder: pathlib.Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.benchmarks.train_step"]
    flags_ = [f"--side={side}", f"--folder={folder}"]
    done = subprocess.run([*command, *flags_], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def write_slots(folder: pathlib.Path) -> None:
    """The starting slots [p, L * 2 * K * H] as PEFT lays them: the base's KV of random tokens."""
    import torch
    import transformers

    base: Any = transformers.LlamaForCausalLM.from_pretrained(folder / "model")
    ids = np.random.default_rng(1).integers(3, base.config.vocab_size, (1, SLOTS))
    with torch.no_grad():
        cache = base(torch.tensor(ids), use_cache=True).past_key_values
    layers = [x for layer in cache.layers for x in (layer.keys, layer.values)]  # [1, K, p, H]
    flat = np.stack([x[0].numpy().transpose(1, 0, 2).reshape(SLOTS, -1) for x in layers], axis=1)
    np.save(folder / "slots.npy", flat.reshape(SLOTS, -1))


def plot(curves: dict[str, dict[str, list[list[float]]]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3.2), layout="constrained")
    for axis, (name, sides) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        for side in SIDES:
            seen = np.linspace(0, 1, len(sides[side][0]))
            axis.plot(seen, sides[side][0], marker=".", label=side)
        axis.set(title=f"V = {name}", xlabel="epoch", ylabel="loss, nats a target")
        axis.legend()
    figure.savefig(path, dpi=110)


def main(_) -> None:
    if _FOLDER.value:
        folder, rows_at_a_time = pathlib.Path(_FOLDER.value), SIDES[_SIDE.value]
        found = train_peft(folder, rows_at_a_time) if rows_at_a_time else train_ours(folder)
        print(json.dumps(found))
        return

    from experiments.record import write_result

    result, curves = {}, {}
    for vocabulary in VOCABULARIES:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            make_data(folder, vocabulary)
            write_slots(folder)
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for _ in range(_RUNS.value):
                for side, found in runs.items():
                    found.append(run_side(side, folder))
                    kept = {k: v for k, v in found[-1].items() if k != "losses"}
                    print(vocabulary, side, kept, flush=True)

        def median(side: str, key: str, runs: Any = runs) -> float:
            return statistics.median(r[key] for r in runs[side])

        def against(key: str) -> dict[str, float]:
            ours = median("ours", key)
            return {side: round(ours / median(side, key), 3) for side in SIDES if side != "ours"}

        result[str(vocabulary)] = {
            "speed_ratio": against("tokens_per_s"),
            "memory_share": against("memory_mib"),
            **runs,
        }
        curves[str(vocabulary)] = {s: [r["losses"] for r in found] for s, found in runs.items()}
        print({k: v for k, v in result[str(vocabulary)].items() if k not in runs}, flush=True)
    sizes = {
        "conversations": CONVERSATIONS, "tokens": [SHORTEST, LONGEST], "slots": SLOTS,
        "peft_rows": PADDED_ROWS, "our_rows": PACKED_ROWS, "row_length": ROW_LENGTH,
    }  # fmt: skip
    write_result(_OUT.value, {"shape": SHAPE, "sizes": sizes, "by_vocabulary": result})
    plot(curves, pathlib.Path(_OUT.value).with_suffix(".png"))


if __name__ == "__main__":
    app.run(main)
