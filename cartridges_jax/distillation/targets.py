"""Teacher targets: what the model says with the chunk in its context, position by position.

Takes `conversations-*`, hands on `targets-*`, shard for shard. The chunk is read once and its KV
shared by all conversations about it; then their rows are scored: the top-J log-probabilities of
every next token, and which of these belong to an answer or close it. What a loss counts is decided
where records are read (`LossOn`). Targets always come from our own forward pass, so conversations
may come from any server.
"""

import collections
import functools
import os
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, Int

from cartridges_jax import distributed, files
from cartridges_jax.config import digest
from cartridges_jax.distillation.lm_head import gather_positions, top_log_probabilities
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress
from cartridges_jax.models.chat_template import Suffix
from cartridges_jax.models.transformer import Prefix, Transformer
from cartridges_jax.self_study import conversation
from cartridges_jax.self_study.conversation import Conversation, load_conversations
from cartridges_jax.shapes import few_sizes
from cartridges_jax.shard_exchange import exchange
from cartridges_jax.sharding import DATA, TOKENS_BT, place
from cartridges_jax.shards import ShardSet

SHARDS = "targets"
LossOn = Literal["answers", "all"]  # tokens of a conversation, as targets
TARGETS_ON = "every token"  # earlier versions stored some
TOP_J = 20  # entries kept of each distribution, as in the paper
# Where a manifest says how many targets each row has.
ROW_TARGETS: dict[LossOn, str] = {"answers": "row_answers", "all": "row_targets"}
LEAST_ROW = 32  # tokens; rows are padded up to few sizes from this one on
BATCH_STEP = 16  # rows scored together


@functools.partial(jax.jit, static_argnames=("top",))
def _score(
    model: Transformer,
    prefix: Prefix,
    token_ids: Int[Array, "B T"],
    index: Int[Array, "B M"],
    *,
    top: int,
) -> tuple[Int[Array, "B M J"], Float[Array, "B M J"]]:
    """Top ids and log-probabilities of the token after each position of `index`."""
    positions = jnp.broadcast_to(
        jnp.arange(token_ids.shape[1]) + prefix.next_position,
        token_ids.shape,
        out_sharding=TOKENS_BT,
    )
    hidden, _ = model(token_ids, positions, None, prefix=prefix)
    return top_log_probabilities(model, gather_positions(hidden, index), top)


def encode_record(
    token_ids: np.ndarray,
    index: np.ndarray,
    top_ids: np.ndarray,
    top_logprobs: np.ndarray,
    is_answer: np.ndarray | None = None,
) -> bytes:
    """Stores one row: tokens [n], target positions [m], teacher's top J [m, J].

    `is_answer` [m]: the token after a position belongs to an answer or closes it; None: each does.
    """
    answers = np.ones(len(index), bool) if is_answer is None else is_answer
    return safetensors.numpy.save(
        {
            "token_ids": np.ascontiguousarray(token_ids, np.int32),
            "target_index": np.ascontiguousarray(index, np.int32),
            "top_ids": np.ascontiguousarray(top_ids, np.int32),
            "top_logprobs": np.ascontiguousarray(top_logprobs, np.float32),
            "is_answer": np.ascontiguousarray(answers, bool),
        }
    )


def decode_record(record: bytes, loss_on: LossOn = "all") -> dict[str, np.ndarray]:
    """Reads what `encode_record` wrote: the targets on all tokens, or on the answers' alone."""
    row = safetensors.numpy.load(record)
    wanted = row.pop("is_answer")
    if loss_on == "answers":
        row |= {name: row[name][wanted] for name in ("target_index", "top_ids", "top_logprobs")}
    return row


def as_hard_labels(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The record with the row's own next tokens, each sure, in place of what the teacher said."""
    next_ids = row["token_ids"][row["target_index"] + 1][:, None]
    return row | {"top_ids": next_ids, "top_logprobs": np.zeros(next_ids.shape, np.float32)}


def score_targets(model: LanguageModel, data: str | os.PathLike[str]) -> ShardSet:
    """Scores every conversation of folder `data` that has no targets yet; `model` is the teacher.

    Several processes divide the units by index, each with a model on its own devices, and wait for
    each other. Where each has a disk of its own, all end with all units.

    Raises:
      InputError: if there are no conversations, they do not fit the model's window, or there are
        targets of another model.
    """
    folder = files.local_path(data)
    conversations = ShardSet.read(folder, conversation.SHARDS)
    inputs = {
        "conversations": digest(conversations.inputs),
        "corpus": conversations.inputs.get("corpus"),
        "model": model.fingerprint,
        "top_j": TOP_J,
        "targets_on": TARGETS_ON,
    }
    distributed.check_alike("what is scored", digest([inputs, conversations.fingerprint]))
    sources = {index: unit["sha256"] for index, unit in conversations.units.items()}
    if ShardSet.exists(folder, SHARDS):
        found = ShardSet.read(folder, SHARDS)
        done = sources == {i: s["source"] for i, s in found.units.items()}
        if distributed.everywhere(done and found.inputs == inputs):
            return found  # perhaps of a folder that may only be read
    else:
        distributed.everywhere(False)
    targets = ShardSet.open(files.output_folder(folder), SHARDS, inputs)
    writer = conversations.inputs.get("model")
    keeps = isinstance(writer, dict) and writer.get("tokenizer") == model.identity["tokenizer"]
    bar = progress(conversations.num_records, "score", "conv", targets.num_records)
    shared = distributed.disk_is_shared(targets.folder)
    if not shared:
        exchange(targets, sources)

    def missing() -> list[int]:
        return [
            i for i, s in sorted(sources.items()) if targets.units.get(i, {}).get("source") != s
        ]

    mine = collections.deque(index for index in missing() if distributed.is_mine(index))
    while mine or missing():
        if mine:
            index = mine.popleft()
            told = load_conversations(conversations, index)
            records = _score_unit(model, told if keeps else [one.as_text() for one in told])
            targets.write(index, records, source=sources[index], **row_sizes(records))
            bar.update(len(records))
        elif shared:
            distributed.wait_for_others()
            targets.refresh()
        if not shared:
            exchange(targets, sources)
    bar.close()
    return targets


def row_sizes(records: Sequence[bytes]) -> dict[str, list[int]]:
    """What a manifest tells of a shard's rows: tokens, and targets on all and on the answers'."""
    sizes = {"row_tokens": [decode_record(r)["token_ids"].size for r in records]}
    for on, name in ROW_TARGETS.items():
        sizes[name] = [decode_record(r, on)["target_index"].size for r in records]
    return sizes


def _score_unit(model: LanguageModel, found: Sequence[Conversation]) -> list[bytes]:
    if not found:
        return []
    chunk = found[0].chunk
    if any(one.chunk != chunk for one in found):
        raise InputError(
            f"conversation {found[0].id} is about another chunk than others of its shard, and a "
            "shard's conversations are scored together; write a shard for each chunk"
        )
    context = model.template.render_context(chunk.title, chunk.text)
    suffixes = [model.template.render_suffix(c.messages) for c in found]
    longest = max(len(suffix.token_ids) for suffix in suffixes)
    if len(context) + longest > model.config.window:
        raise InputError(
            f"a chunk of {chunk.document} has {len(context)} tokens as a context and a "
            f"conversation about it {longest}, more than the teacher's window of "
            f"{model.config.window}; lower chunk_max_tokens"
        )
    return score_suffixes(model, model.read(context), suffixes)


def score_suffixes(model: LanguageModel, prefix: Prefix, suffixes: Sequence[Suffix]) -> list[bytes]:
    """Records of conversations behind a context, in order: rows of about one length together."""
    step = BATCH_STEP * model.mesh.shape[DATA]
    by_length = sorted(range(len(suffixes)), key=lambda i: len(suffixes[i].token_ids))
    records: dict[int, bytes] = {}
    for start in range(0, len(by_length), step):
        which = by_length[start : start + step]
        rows = _score_rows(model, prefix, [suffixes[i] for i in which], step)
        records |= dict(zip(which, rows, strict=True))
    return [records[i] for i in range(len(suffixes))]


def _score_rows(
    model: LanguageModel, prefix: Prefix, suffixes: Sequence[Suffix], rows: int
) -> list[bytes]:
    every = [np.arange(len(s.token_ids) - 1) for s in suffixes]
    tokens = _padded([s.token_ids for s in suffixes], rows)
    index = _padded(every, rows)
    with jax.set_mesh(model.mesh):
        placed = [place(model.mesh, x, TOKENS_BT) for x in (tokens, index)]
        top = min(TOP_J, model.config.vocab_size)
        ids, values = map(np.asarray, _score(model.transformer, prefix, *placed, top=top))
    records = []
    for i, (suffix, at) in enumerate(zip(suffixes, every, strict=True)):
        of_row = (ids[i, : len(at)], values[i, : len(at)], suffix.is_answer[1:])
        records.append(encode_record(suffix.token_ids, at, *of_row))
    return records


def _padded(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Rows of numbers as int32 [count, width], zeros behind them; width by few sizes."""
    width = few_sizes(max(map(len, rows)), LEAST_ROW)
    out = np.zeros((count, width), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
