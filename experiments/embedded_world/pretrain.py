"""Trains the model of this world from nothing, on procedural documents.

    JAX_PLATFORMS=cuda python -m experiments.embedded_world.pretrain --data_workers=15

400 M tokens, eight minutes on an H200 beside 16 cores, most of which make rows. Without a GPU it
runs on the CPU, some 2,000 tokens a second on two cores; the first 12 M tokens do most of it
(`--million_tokens=12`: lookup 0.95, quoting 0.94, two-hop 0.85 in the validation).

Stop it at any moment and start it again: it goes on from its last checkpoint and ends with the same
weights. metrics.jsonl has the losses of words and pointers (`pointers.py`), and exact
match by question type on held-out documents; curves.png shows all but the pointers. `--export` only
writes the last checkpoint as a Hugging Face folder, with the curves so far; `--start` goes on from
a model instead of fresh weights.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two devices of one thread each in data parallel: twice as fast as one device of two threads.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
    " --xla_cpu_enable_fast_math=true",
)

import grain
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags
from etils import epath
from flax import nnx
from jax.sharding import PartitionSpec as P
from matplotlib import pyplot as plt
from optax import contrib

from cartridges_jax import files
from cartridges_jax.distillation.checkpoint import TrainingCheckpoints
from cartridges_jax.loading import load_model
from cartridges_jax.metrics import MetricsLog, progress, read_metrics
from cartridges_jax.models.chat_template import ChatTemplate
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.fingerprint import weights_fingerprint
from cartridges_jax.models.rope import Rope
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.tokenizer import SentencePieceTokenizer, Tokenizer
from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import DATA, TOKENS_BT, make_mesh, place
from experiments.embedded_world import pointers, tokenizer_training, training_data
from experiments.embedded_world.induction_init import induction_initialize
from experiments.embedded_world.pretraining import POINTER_HEADS, POINTER_WEIGHTS, mean_gradient
from experiments.embedded_world.training_data import Phase
from experiments.embedded_world.world import asking
from experiments.export import export_folder
from experiments.record import files_digest

matplotlib.use("agg")

_OUT = flags.DEFINE_string(
    "out", "runs/embedded_world", "Folder of checkpoints, logs and the model."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and data.")
_START = flags.DEFINE_string(
    "start", "", "Model folder to go on from; empty: weights with induction heads."
)
_PEAK_RATE = flags.DEFINE_float("peak_rate", 3e-3, "Highest learning rate.")
_EXPORT = flags.DEFINE_bool("export", False, "Only write the last checkpoint as a model folder.")

_TOKENS_PER_STEP = flags.DEFINE_integer("tokens_per_step", 8192, "Tokens of a step.")
_MILLION_TOKENS = flags.DEFINE_float(
    "million_tokens", 0.0, "Tokens in all, shared out as the phases' are; 0: as many as those."
)
_DATA_WORKERS = flags.DEFINE_integer(
    "data_workers", 0, "Processes that make rows; 0: a thread of this one."
)

PIECE_TOKENS = 4096  # at a time on a CPU
FINAL_SHARE, WARMUP, DECAY_SHARE = 0.02, 60, 0.85
MATRIX_AXES = {  # inputs and outputs of [L, D, N, H] and the like: a matrix for each layer and head
    "q": (1, 3), "k": (1, 3), "v": (1, 3), "o": (2, 3),
    "gate": (1, 2), "up": (1, 2), "down": (1, 2),
}  # fmt: skip
TOKENIZER = "tokenizer.model"  # in the run's folder
CHECKPOINT_EVERY, VALIDATE_EVERY = 100, 250  # steps; but each no more than MOST times
MOST = 50
LOGIT_PIECES = 8  # of a row; all logits of the validation at once would be large
VALIDATION_ROWS, VALIDATION_LENGTH = 96, 1024


def model_config(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=160,
        mlp_size=384,
        num_layers=6,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,  # heads of 32 learn slower: matching a thing and a noun takes dimensions
        norm_eps=1e-5,
        # Two thirds of the frequencies hardly turn within the window: words match far off too.
        rope=Rope(theta=1e8, scaling=None),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tie_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.id_of(tokenizer_training.BEGIN),
        eos_token_ids=(tokenizer.id_of(tokenizer_training.END),),
    )


def phases() -> tuple[Phase, ...]:
    """The phases with as many tokens as are asked for."""
    found = training_data.FROM_A_MODEL if _START.value else training_data.FROM_NOTHING
    scale = 1e6 * _MILLION_TOKENS.value / sum(p.num_tokens for p in found) or 1.0
    return tuple(dataclasses.replace(p, num_tokens=round(scale * p.num_tokens)) for p in found)


def num_steps(phase: Phase) -> int:
    return phase.num_tokens // _TOKENS_PER_STEP.value


@functools.cache
def make_template(sentencepiece: bytes) -> ChatTemplate:
    tokenizer = SentencePieceTokenizer(sentencepiece, legacy=True)
    return ChatTemplate(tokenizer, tokenizer_training.CHAT_TEMPLATE)


def make_batch(
    step: int, phases: tuple[Phase, ...], tokens_per_step: int, seed: str, sentencepiece: bytes
) -> dict[str, np.ndarray]:
    """The rows of a step, which depend on these arguments alone; any process can make them."""
    template = make_template(sentencepiece)
    for index, phase in enumerate(phases):
        steps, rows = phase.num_tokens // tokens_per_step, tokens_per_step // phase.row_length
        if step < steps:
            name, places = f"{seed} {index}", range(step * rows, (step + 1) * rows)
            made = [training_data.make_row(phase, name, i, template) for i in places]
            return {key: np.stack([row[key] for row in made]) for key in made[0]}
        step -= steps
    raise IndexError(f"{step} steps behind the last one")


def batches(seed: str, sentencepiece: bytes, first_step: int):
    """Iterates over the batches from `first_step` on, phase after phase."""
    make = functools.partial(
        make_batch,
        phases=phases(),
        tokens_per_step=_TOKENS_PER_STEP.value,
        seed=seed,
        sentencepiece=sentencepiece,
    )
    total = sum(map(num_steps, phases()))
    dataset = grain.MapDataset.range(first_step, total).map(make)
    made = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8))
    if not _DATA_WORKERS.value:
        return made
    return made.mp_prefetch(grain.MultiprocessingOptions(_DATA_WORKERS.value))


def in_pieces(x: np.ndarray) -> np.ndarray:
    """Rows [B, ...] as [N, rows, ...]: what a piece computes stays in the processor's caches."""
    rows = x.shape[0]
    if jax.default_backend() == "cpu":
        rows = PIECE_TOKENS * rows // _TOKENS_PER_STEP.value
    return x.reshape(-1, rows, *x.shape[1:])


@jax.jit
def is_predicted(model: Transformer, tokens):
    """Whether each token but the first is what the model would have said [B, T - 1]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape, out_sharding=TOKENS_BT)
    hidden, _ = model(tokens, positions, jnp.zeros_like(tokens))
    pieces = jnp.stack(jnp.split(hidden, LOGIT_PIECES, axis=1))
    said = jax.lax.map(lambda h: model.logits(h).argmax(-1), pieces)
    return jnp.concatenate(list(said), axis=1)[:, :-1] == tokens[:, 1:]


def matrix_axes(weights):
    """The axes of each matrix that Muon makes orthogonal; None for what Adam serves."""

    def axes(path, weight):
        found = [MATRIX_AXES[key.key] for key in path if getattr(key, "key", None) in MATRIX_AXES]
        return contrib.MuonDimensionNumbers(*found[0]) if found else None

    return jax.tree_util.tree_map_with_path(axes, weights)


def make_optimizer(num_steps: int, peak: float) -> optax.GradientTransformation:
    """Muon (optax.contrib) for the blocks' matrices, AdamW for the embedding and the norms.

    Its loss is some 4 % lower than with AdamW alone after as many steps, which take 8 % longer.
    """
    decay = int(num_steps * DECAY_SHARE)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(peak / WARMUP, peak, WARMUP),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, peak * FINAL_SHARE, decay),
        ],
        [WARMUP, num_steps - decay],
    )
    muon = contrib.muon(
        schedule,
        weight_decay=0.02,
        consistent_rms=0.2,  # steps of the size that Adam's have
        adam_b1=0.9,
        adam_b2=0.97,
        adam_weight_decay=0.02,
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=matrix_axes,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def whole(weights):
    """Every device has all of the weights: Muon multiplies a matrix by itself."""
    return jax.tree.map(lambda w: jax.sharding.reshard(w, P()), weights)


class Validation:
    """Exact match by question type on held-out rows.

    Where every token of an answer is the likeliest after the right ones before it, greedy decoding
    gives that answer: one pass over the rows tells it for all of them.
    """

    def __init__(self, mesh, template: ChatTemplate):
        rows = training_data.held_out_rows(VALIDATION_ROWS, VALIDATION_LENGTH, template)
        self._answers = [row.answers for row in rows]
        tokens = np.stack([row.padded(template.tokenizer.pad_id) for row in rows])
        self._tokens = place(mesh, tokens, TOKENS_BT)

    def __call__(self, model: Transformer) -> dict[str, float]:
        right = np.asarray(is_predicted(model, self._tokens))
        found: dict[str, list[bool]] = collections.defaultdict(list)
        for row, answers in enumerate(self._answers):
            for a in answers:
                found[a.kind].append(bool(right[row, a.start - 1 : a.end - 1].all()))
        return {kind: float(np.mean(found[kind])) for kind in sorted(found)}


def plot_curves(out: epath.Path) -> None:
    """Draws the losses and the exact match by question type over the tokens that were read."""
    found: dict[int, dict[str, float]] = collections.defaultdict(dict)
    for row in read_metrics(out / "metrics.jsonl"):
        found[row["step"]] |= row
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name in ("loss", "answer_loss"):
        at = [step for step in sorted(found) if name in found[step]]
        tokens = [step * _TOKENS_PER_STEP.value / 1e6 for step in at]
        left.plot(tokens, [found[step][name] for step in at], label=name.replace("_", " "), lw=1)
    left.set(xlabel="million tokens", ylabel="nats a token", yscale="log")
    validated = [step for step in sorted(found) if "right/lookup" in found[step]]
    tokens = [step * _TOKENS_PER_STEP.value / 1e6 for step in validated]
    for i, kind in enumerate(sorted(asking.KINDS)):
        values = [100 * found[step].get(f"right/{kind}", np.nan) for step in validated]
        right.plot(tokens, values, "-" if i < 10 else "--", label=kind, lw=1)
    right.set(xlabel="million tokens", ylabel="% right, held-out wordings, rows of 1,024 tokens")
    left.legend()
    right.legend(fontsize="small", ncols=2)
    figure.savefig(out / "curves.png", dpi=110)
    plt.close(figure)


def export(out: epath.Path, model: Transformer) -> None:
    """Writes the model's folder, for us and for transformers, and the curves so far."""
    sentencepiece = (out / TOKENIZER).read_bytes()
    source = tokenizer_training.to_tokenizer_json(sentencepiece)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer_training.BEGIN,
        "eos_token": tokenizer_training.END,
    }
    tokenizer = {
        "tokenizer.json": source.encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        TOKENIZER: sentencepiece,
    }
    export_folder(out / "model", model, tokenizer, tokenizer_training.CHAT_TEMPLATE)
    plot_curves(out)


def sources_digest() -> str:
    """Of what writes the rows: another generator's rows are another training."""
    here = epath.Path(training_data.__file__).parent
    world = sorted((here / "world").glob("*.*"))
    return files_digest(*world, here / "training_data.py", here / "pointers.py")


def main(_) -> None:
    out = epath.Path(_OUT.value).resolve()
    tokenizer_file = out / TOKENIZER
    if not tokenizer_file.exists():
        out.mkdir(parents=True, exist_ok=True)
        if _START.value:
            made = (epath.Path(_START.value) / TOKENIZER).read_bytes()
        else:
            made = tokenizer_training.train_tokenizer(_SEED.value)
        files.write_bytes(tokenizer_file, made)
    sentencepiece = tokenizer_file.read_bytes()
    template = make_template(sentencepiece)
    total = sum(map(num_steps, phases()))
    checkpoint_every, validate_every = (
        max(steps, total // MOST) for steps in (CHECKPOINT_EVERY, VALIDATE_EVERY)
    )
    optimizer = make_optimizer(total, _PEAK_RATE.value)
    mesh = make_mesh(data=min(2, len(jax.devices())))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(model, opt_state, batch):
        grads, losses = mean_gradient(model, batch)
        weights = nnx.state(model)
        updates, opt_state = optimizer.update(whole(grads), opt_state, whole(weights))
        updates = jax.tree.map(
            lambda u, w: jax.sharding.reshard(u, jax.typeof(w).sharding.spec), updates, weights
        )
        model = nnx.merge(graphdef, optax.apply_updates(weights, updates))
        return model, opt_state, losses

    inputs = {
        "seed": _SEED.value,
        "peak_rate": _PEAK_RATE.value,
        "tokens_per_step": _TOKENS_PER_STEP.value,
        "phases": [vars(phase) for phase in phases()],
        "pointers": [POINTER_HEADS, POINTER_WEIGHTS],
        "tokenizer": hashlib.sha256(sentencepiece).hexdigest(),
        "model": repr(model_config(template.tokenizer)),
        "sources": sources_digest(),
    }
    seed_of_rows = str(_SEED.value)
    if _START.value:
        inputs["start"] = weights_fingerprint(FolderSource(_START.value))
        seed_of_rows += f" after {inputs['start'][:12]}"  # other rows than that model has seen
    with jax.set_mesh(mesh), TrainingCheckpoints(out / "checkpoints", inputs) as checkpoints:
        if _START.value:
            model = load_model(_START.value, mesh=mesh).transformer
        else:
            model = induction_initialize(model_config(template.tokenizer), _SEED.value)
        opt_state = optimizer.init(whole(nnx.state(model)))
        graphdef = nnx.graphdef(model)
        step = 0
        restored = checkpoints.restore((nnx.state(model), opt_state))
        if restored is not None:
            step, (weights, opt_state), _ = restored
            model = nnx.merge(graphdef, weights)
        if _EXPORT.value:
            if restored is None:
                raise SystemExit(f"error: there is no checkpoint in {out} to export")
            export(out, model)
            print(f"step {step} of {total} written to {out / 'model'}")
            return
        validation = Validation(mesh, template)
        with MetricsLog(out, step) as log, progress(total, "pretrain", "step", step) as bar:
            started = time.perf_counter()
            for batch in batches(seed_of_rows, sentencepiece, step):
                batch = {k: place(mesh, in_pieces(v), P(None, DATA)) for k, v in batch.items()}
                model, opt_state, losses = train_step(model, opt_state, batch)
                step += 1
                bar.update()
                if step % 20 == 0:
                    rate = 20 * _TOKENS_PER_STEP.value / (time.perf_counter() - started)
                    started = time.perf_counter()
                    loss, answer_loss = float(losses["loss"]), float(losses["answer_loss"])
                    pointed = {
                        f"pointers/{name}": float(x)
                        for name, x in zip(pointers.NAMES, losses["pointers"], strict=True)
                    }
                    log.write(
                        step, loss=loss, answer_loss=answer_loss, tokens_per_s=rate, **pointed
                    )
                    bar.set_postfix(
                        loss=f"{loss:.3f}", answer=f"{answer_loss:.3f}", tok_s=f"{rate:.0f}"
                    )
                if step % validate_every == 0 or step == total:
                    scores = validation(model)
                    log.write(step, **{f"right/{kind}": x for kind, x in scores.items()})
                    bar.write(f"{step:6d} " + "  ".join(f"{k} {x:.2f}" for k, x in scores.items()))
                if step % checkpoint_every == 0 or step == total:
                    checkpoints.save(step, (nnx.state(model), opt_state), {})
        export(out, model)
        print(f"The model is in {out / 'model'}: copy it to tests/data/test_model.")


if __name__ == "__main__":
    app.run(main)
