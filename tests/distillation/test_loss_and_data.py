"""The loss against its definition, and packed rows against the same conversations alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cartridges_jax.corpus import Document
from cartridges_jax.corpus.chunkers import Chunk
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.dataset import PackedData, RowShape
from cartridges_jax.distillation.lm_head import top_log_probabilities
from cartridges_jax.distillation.loss import Targets, distillation_loss
from cartridges_jax.distillation.step import prefix_loss
from cartridges_jax.distillation.targets import encode_record
from cartridges_jax.distillation.train import train
from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import Message
from cartridges_jax.models.int8 import quantize
from cartridges_jax.self_study.conversation import Conversation
from cartridges_jax.sharding import DATA, place
from cartridges_jax.shards import ShardSet
from tests.conftest import MESHES, document_named, make_tiny_model
from tests.self_study.scripted import ScriptedClient

CHUNKS = {"chunk_min_tokens": 100, "chunk_max_tokens": 200}

J = 4


def random_records(rng, count, vocab):
    """Rows of 5 to 30 tokens with a teacher that is sure of some and unsure of other tokens."""
    records = []
    for _ in range(count):
        n = int(rng.integers(5, 30))
        index = np.flatnonzero(rng.random(n - 1) < 0.6)
        logits = rng.normal(size=(len(index), J)) * 3
        logprobs = logits - np.log(
            np.exp(logits).sum(-1, keepdims=True) + rng.random((len(index), 1))
        )
        ids = (
            np.stack([rng.choice(vocab, J, replace=False) for _ in index])
            if len(index)
            else np.zeros((0, J))
        )
        records.append(encode_record(rng.integers(3, vocab, n), index, ids, logprobs))
    return records


def write_shards(folder, records):
    shards = ShardSet.open(folder, targets_file.SHARDS, {})
    shards.write(0, records, **targets_file.row_sizes(records))
    return shards


def sums_and_gradient(model, cartridge, batch):
    prefix = model.as_prefix(cartridge)

    def total(keys, values):
        kv = type(prefix.kv)(keys, values)
        sums = prefix_loss(prefix._replace(kv=kv), model.transformer, placed)
        sums = jax.tree.map(jnp.sum, sums)
        return sums.loss, sums

    with jax.set_mesh(model.mesh):
        placed = {k: place(model.mesh, v, P(DATA)) for k, v in batch.items()}
        grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        (_, sums), grads = grad(*prefix.kv)
    return [float(x) for x in sums], [np.asarray(g) for g in grads]


def batch_of(rows):
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}


def rest_of(p):
    return jnp.clip(1 - p.sum(-1), 1e-30, 1.0)


def top_j(kind, logits, ids, t):
    """Loss and the teacher's entropy term of each position, from whole logits."""
    logq = jnp.take_along_axis(jax.nn.log_softmax(logits), ids, -1)
    if kind == "renormalised":
        t = t - jax.nn.logsumexp(t, axis=-1, keepdims=True)
    p = jnp.exp(t)
    loss, known = -(p * logq).sum(-1), jnp.where(p > 0, p * t, 0).sum(-1)
    if kind == "tail":
        loss -= rest_of(p) * jnp.log(rest_of(jnp.exp(logq)))
        known += rest_of(p) * jnp.log(rest_of(p))
    return loss, known


def model_with_head(mesh, quantized):
    """A tiny model, and its LM head as the definition takes it."""
    model = make_tiny_model(*mesh)
    head = model.transformer.lm_head
    if quantized:
        with jax.set_mesh(model.mesh):
            quantize(head)
    scale = np.asarray(head.scale[...])[:, None] if quantized else 1.0
    return model, np.asarray(head.weight[...], np.float32) * scale


def placed_on(model, *arrays):
    return [place(model.mesh, x, P(DATA, *[None] * (x.ndim - 1))) for x in arrays]


def random_hidden(rng, model, B=4, T=90, M=70):
    hidden = rng.normal(size=(B, T, model.config.hidden_size)).astype(np.float32)
    index = rng.integers(0, T, (B, M)).astype(np.int32)
    weight = (rng.random((B, M)) < 0.7).astype(np.float32)
    return hidden, index, weight


def check(model, head, hidden, index, compute, define):
    """Sums and gradients of `compute(hidden)` against `define(logits)`: the wanted sums."""

    def defined(hidden):
        picked = jnp.take_along_axis(hidden, index[..., None], 1)
        return define(jnp.einsum("BMD,VD->BMV", picked, head))

    want, want_gradient = defined(hidden), jax.grad(lambda h: defined(h)[0])(hidden)
    with jax.set_mesh(model.mesh):
        [h] = placed_on(model, hidden)
        got = jax.jit(compute)(h)
        by_sums = jax.jit(jax.jacrev(compute))(h)
    np.testing.assert_allclose([float(x) for x in got], want, rtol=3e-5)
    for gradient in (by_sums.loss, by_sums.kl):
        np.testing.assert_allclose(gradient, want_gradient, atol=2e-5)
    assert not np.asarray(by_sums.count).any()


@pytest.mark.parametrize("kind", ["top_j", "renormalised", "tail"])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("quantized", [False, True])
def test_loss_and_gradient_equal_their_definition(rng, kind, mesh, quantized):
    model, head = model_with_head(mesh, quantized)
    hidden, index, weight = random_hidden(rng, model)
    ids = rng.random((*index.shape, model.config.vocab_size)).argsort(-1)[..., :J].astype(np.int32)
    t = np.log(rng.dirichlet(np.ones(J + 1), index.shape)[..., :J]).astype(np.float32)
    t[:, ::7, -1] = -np.inf  # what the teacher rules out
    with jax.set_mesh(model.mesh):
        targets = Targets(*placed_on(model, index, ids, t, weight))

    def define(logits):
        loss, known = top_j(kind, logits, ids, t)
        return (weight * loss).sum(), (weight * (loss + known)).sum(), weight.sum()

    def compute(h):
        return jax.tree.map(jnp.sum, distillation_loss(model.transformer, h, targets, kind))

    check(model, head, hidden, index, compute, define)


@pytest.mark.parametrize(("mesh", "quantized"), [((1, 1), False), ((2, 4), False), ((2, 4), True)])
def test_the_likeliest_tokens_equal_those_of_whole_logits(rng, mesh, quantized):
    top = 20
    model, head = model_with_head(mesh, quantized)
    hidden, index, _ = random_hidden(rng, model)
    picked = np.take_along_axis(hidden, index[..., None], 1)
    logp = np.asarray(jax.nn.log_softmax(jnp.einsum("BMD,VD->BMV", picked, head)))
    with jax.set_mesh(model.mesh):
        placed = placed_on(model, picked)
        compute = jax.jit(top_log_probabilities, static_argnums=2)
        ids, values = map(np.asarray, compute(model.transformer, *placed, top))
    np.testing.assert_allclose(values, -np.sort(-logp, axis=-1)[..., :top], atol=2e-5)
    np.testing.assert_allclose(np.take_along_axis(logp, ids, -1), values, atol=2e-5)
    assert all(len(set(row)) == top for row in ids.reshape(-1, top))


def alone_in_a_row(row, T=32):
    """The batch arrays of one conversation in a row of its own."""

    def pad(x):
        return np.concatenate([x, np.zeros((T - len(x), *x.shape[1:]), x.dtype)])

    n, m = len(row["token_ids"]), len(row["target_index"])
    return {
        "token_ids": pad(row["token_ids"]),
        "positions": np.arange(T, dtype=np.int32),
        "segment_start": np.where(np.arange(T) < n, 0, n).astype(np.int32),
        "target_index": pad(row["target_index"]),
        "top_ids": pad(row["top_ids"]),
        "top_logprobs": pad(row["top_logprobs"]),
        "target_weight": (np.arange(T) < m).astype(np.float32),
    }


def test_packed_rows_equal_unpacked_ones(tiny, rng, tmp_path):
    """Same loss, same count and same gradient of the cartridge, one conversation a row or many."""
    records = [
        r
        for r in random_records(rng, 24, 2048)
        if len(targets_file.decode_record(r)["target_index"])
    ]
    cartridge = tiny.kv_as_cartridge(np.arange(3, 15))
    shards = write_shards(tmp_path, records)

    batch = next(iter(PackedData(shards, RowShape(128, 96), 4, seed=0).batches()))
    by_tokens = {tuple(r["token_ids"]): r for r in map(targets_file.decode_record, records)}
    alone = []
    for tokens, start in zip(batch["token_ids"], batch["segment_start"], strict=True):
        segments = [tokens[start == s] for s in sorted(set(start))]
        alone += [alone_in_a_row(by_tokens[tuple(s)]) for s in segments if s.any()]
    assert len(alone) > 2 * 4  # several conversations a row
    want, want_grads = sums_and_gradient(tiny, cartridge, batch_of(alone))
    got, got_grads = sums_and_gradient(tiny, cartridge, batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("shape", [RowShape(64, 48), RowShape(256, 20)])
def test_an_epoch_holds_every_conversation_once(rng, tmp_path, shape):
    """With all its targets: what overflows a row's tokens or its targets opens another."""
    records = random_records(rng, 40, 500)
    shards = write_shards(tmp_path, records)
    data = PackedData(shards, shape, 2, seed=3)
    rows = [r for r in map(targets_file.decode_record, records) if len(r["target_index"])]
    want = sorted((tuple(r["token_ids"]), len(r["target_index"])) for r in rows)
    assert data.num_conversations == len(want) and data.num_dropped == 40 - len(want)
    got, batches, most = [], iter(data.batches()), 0
    while len(got) < 3 * len(want):
        batch = next(batches)
        for row in range(2):
            tokens, start = batch["token_ids"][row], batch["segment_start"][row]
            at = batch["target_index"][row][batch["target_weight"][row] > 0]
            most = max(most, len(at))
            for s in sorted(set(start)):
                segment = tokens[start == s]
                if segment.any():
                    got.append((tuple(segment), int((start[at] == s).sum())))
    assert most <= shape.num_targets
    # Packing moves conversations by a few rows, so compare the first two epochs as counts.
    first = got[: 2 * len(want)]
    counts = {c: first.count(c) for c in set(want)}
    assert all(1 <= n <= 3 * want.count(c) for c, n in counts.items())
    assert set(first) == set(want)


def test_places_for_targets_bound_a_row_as_its_tokens_do(rng, tmp_path):
    shards = write_shards(tmp_path, random_records(rng, 60, 500))

    def conversations_per_row(shape):
        batches = iter(PackedData(shards, shape, 2, seed=0).batches())
        segments = [next(batches)["segment_start"] for _ in range(8)]
        return np.mean([len(set(row)) for batch in segments for row in batch])

    assert conversations_per_row(RowShape(256, 30)) < conversations_per_row(RowShape(256, 256)) / 2


def test_what_fits_no_row_is_dropped_and_counted(rng, tmp_path):
    records = random_records(rng, 30, 500)
    shards = write_shards(tmp_path, records)
    lengths = [len(targets_file.decode_record(r)["token_ids"]) for r in records]
    data = PackedData(shards, RowShape(16, 16), 1, seed=0)
    assert data.num_dropped >= sum(n > 16 for n in lengths) > 0
    assert data.num_conversations + data.num_dropped == 30
    with pytest.raises(InputError, match="raise row_length"):
        PackedData(shards, RowShape(3, 3), 1, seed=0)


def test_the_iterator_resumes_exactly(rng, tmp_path):
    shards = write_shards(tmp_path, random_records(rng, 60, 500))
    data = PackedData(shards, RowShape(64, 48), 2, seed=1).batches()
    iterator = iter(data)
    for _ in range(11):
        next(iterator)
    state = iterator.get_state()
    want = [next(iterator) for _ in range(9)]
    again = iter(PackedData(shards, RowShape(64, 48), 2, seed=1).batches())
    again.set_state(state)
    for batch in want:
        got = next(again)
        for name, value in batch.items():
            np.testing.assert_array_equal(got[name], value)


def test_teacher_targets_are_those_of_the_whole_context(trained, tmp_path):
    """Scored after the chunk's shared KV, they equal a forward over chunk and conversation."""
    from cartridges_jax.self_study.config import SynthesisConfig
    from cartridges_jax.self_study.conversation import load_conversations
    from cartridges_jax.self_study.run import synthesize

    document = document_named("targets")
    conversations = synthesize(
        trained,
        [document],
        tmp_path,
        SynthesisConfig(num_conversations=8, conversations_per_chunk=8, **CHUNKS),
        ScriptedClient(),
    )
    targets = targets_file.score_targets(trained, tmp_path)
    pairs = zip(load_conversations(conversations, 0), targets.records(0), strict=True)
    for conversation, record in list(pairs)[:3]:
        row = targets_file.decode_record(record)
        n = len(row["token_ids"])
        np.testing.assert_array_equal(row["target_index"], np.arange(n - 1))
        chunk = conversation.chunk
        context = trained.template.render_context(chunk.title, chunk.text)
        logits = np.asarray(trained.logits([*context, *row["token_ids"]]))[len(context) :]
        logp = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))[row["target_index"]]
        want = -np.sort(-logp, axis=-1)[:, :20]
        np.testing.assert_allclose(row["top_logprobs"], want, atol=1e-4)
        np.testing.assert_allclose(np.take_along_axis(logp, row["top_ids"], -1), want, atol=1e-4)
        answer = conversation.messages[1]["content"]
        end = trained.config.eos_token_ids[0]
        row = targets_file.decode_record(record, "answers")
        assert row["token_ids"][row["target_index"] + 1].tolist() == [
            *trained.tokenizer.encode(answer), end,
        ]  # fmt: skip


def test_what_the_teacher_cannot_read_is_refused(tiny, tmp_path, monkeypatch):
    """Conversations may come from another model, with a longer window or other shards."""
    told = (Message(role="user", content="Who?"), Message(role="assistant", content="Ada."))

    def scored(name, *texts):
        chunks = [Chunk("d", "t", text, 0, 9) for text in texts]
        made = [Conversation(f"0-{i}", c, "f", "p", told) for i, c in enumerate(chunks)]
        conversations = ShardSet.open(tmp_path / name, "conversations", {"corpus": []})
        conversations.write(0, [one.to_bytes() for one in made])
        return targets_file.score_targets(tiny, tmp_path / name)

    with pytest.raises(InputError, match="more than the teacher's window of 512"):
        scored("long", "Ada lives in Oslo. " * 200)
    with pytest.raises(InputError, match="about another chunk"):
        scored("mixed", "Ada lives in Oslo.", "Ira lives in Rome.")
    assert scored("right", *["Ada lives in Oslo."] * 2).num_records == 2
    monkeypatch.setattr(targets_file.files, "output_folder", None)  # what is whole is only read
    assert targets_file.score_targets(tiny, tmp_path / "right").num_records == 2


def test_training_takes_targets_on_all_tokens_or_on_answers(trained, tmp_path):
    """From the same records; hard labels are the row's own tokens."""
    from cartridges_jax.self_study.config import SynthesisConfig
    from cartridges_jax.self_study.run import synthesize

    document = document_named("targets")
    config = SynthesisConfig(num_conversations=4, conversations_per_chunk=4, **CHUNKS)
    synthesize(trained, [document], tmp_path, config, ScriptedClient())
    shards = targets_file.score_targets(trained, tmp_path)
    (tmp_path / "conversations.manifest.jsonl").unlink()  # targets alone tell what they are of
    with pytest.raises(InputError, match="are not those asked for"):
        other = Document("d", "d", "Other.")
        train(trained, [other], tmp_path, tmp_path / "run", TrainConfig())

    shape, found = RowShape(128, 128), {}
    for on in ("all", "answers"):
        data = PackedData(shards, shape, 2, 0, loss_on=on)
        rows = [targets_file.decode_record(r, on) for r in shards.records(0)]
        assert data.target_positions == sum(len(r["target_index"]) for r in rows)
        first = next(iter(data.batches()))
        found[on] = first["target_weight"].sum()
    assert 0 < found["answers"] < found["all"]

    batch = next(iter(PackedData(shards, RowShape(128, 128), 2, 0, "tokens").batches()))
    assert batch["top_ids"].shape == (2, 128, 1) and not batch["top_logprobs"].any()
    for row in range(2):
        real = batch["target_weight"][row] > 0
        at = batch["target_index"][row, real]
        np.testing.assert_array_equal(
            batch["top_ids"][row, real, 0], batch["token_ids"][row, at + 1]
        )
