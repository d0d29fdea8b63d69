"""Batched generation whose token loop runs inside `jit`.

Prompts of different lengths are padded on the left, so that all rows write to the same cache slot;
a row's own random stream depends on (seed, row) alone, never on its neighbours. Shapes are rounded
up to a few sizes, so that few programs are compiled.

A step reads the weights once, the prefix once for all rows, and the rows' caches.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.models.transformer import KV, Prefix, Transformer
from cartridges_jax.sharding import DATA, TOKENS_BT, place

PROMPT_STEP = 32  # prompt lengths are rounded up to a multiple of this
ANSWER_STEP = 128  # room for new tokens likewise; how many are made is not compiled in
BATCH_STEP = 8  # batch sizes likewise


class Sampled(NamedTuple):
    """Generated tokens: ids and log-probabilities [B, max_new], the count of each row's [B]."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray


def _choose(
    logits: Float[Array, "B V"], seeds: Int[Array, "B"], step: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws a token per row (greedy at temperature 0); returns ids [B] and log-probs [B].

    The log-probability is that of the undisturbed model, at temperature 1.
    """
    logits = jax.sharding.reshard(logits, P(DATA, None))

    def gumbel(seed):
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), step), logits.shape[1:])

    noise = jax.sharding.reshard(jax.vmap(gumbel)(jax.sharding.reshard(seeds, P())), P(DATA, None))
    scores = jnp.where(temperature > 0, logits + temperature * noise, logits)
    token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    hot = jnp.arange(logits.shape[1]) == token[:, None]
    return token, jnp.sum(jnp.where(hot, jax.nn.log_softmax(logits), 0.0), axis=-1)


@functools.partial(jax.jit, static_argnames=("room", "stop_ids"))
def _generate(
    model: Transformer,
    prefix: Prefix | None,
    token_ids: Int[Array, "B T"],
    padding: Int[Array, "B"],
    seeds: Int[Array, "B"],
    temperature: jax.Array,
    max_new_tokens: jax.Array,
    *,
    room: int,
    stop_ids: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    B, T = token_ids.shape
    start = 0 if prefix is None else prefix.next_position
    first_key = jnp.broadcast_to(padding[:, None], (B, T), out_sharding=TOKENS_BT)
    positions = jnp.maximum(jnp.arange(T) - first_key, 0) + start
    hidden, own = model(token_ids, positions, first_key, prefix=prefix)
    grown = [(0, 0), (0, 0), (0, room), (0, 0), (0, 0)]
    cache = KV(jnp.pad(own.k, grown), jnp.pad(own.v, grown))
    logits = model.logits(hidden[:, -1:])[:, 0]

    def keep_going(state):
        step, *_, done = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def advance(state):
        step, cache, logits, ids, logprobs, done = state
        token, logprob = _choose(logits, seeds, step, temperature)
        token = jnp.where(done, 0, token)
        ids = jax.lax.dynamic_update_slice(ids, token[:, None], (0, step))
        logprobs = jax.lax.dynamic_update_slice(logprobs, logprob[:, None], (0, step))
        stopped = functools.reduce(jnp.logical_or, [token == i for i in stop_ids], done)
        column = first_key[:, :1]
        hidden, cache = model.decode(
            token[:, None], T + step - column + start, column, cache, T + step, prefix=prefix
        )
        return step + 1, cache, model.logits(hidden)[:, 0], ids, logprobs, stopped

    empty = jnp.zeros_like(token_ids, shape=(B, room), out_sharding=TOKENS_BT)
    done = padding >= T  # rows that only round the batch up
    state = (0, cache, logits, empty, empty.astype(jnp.float32), done)
    _, _, _, ids, logprobs, _ = jax.lax.while_loop(keep_going, advance, state)
    return ids, logprobs


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def generate_ids(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    prefix: Prefix | None,
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    stop_ids: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Sampled:
    """Continues every prompt (token ids) until a stop id or `max_new_tokens`.

    Args:
      model: the base, on `mesh`.
      prompts: at least one, none empty; with a prefix they are suffixes.
      prefix: shared by all rows, or None.
      max_new_tokens: most tokens to add, the stop token included.
      temperature: 0 for greedy.
      seeds: one per prompt.
      stop_ids: ids that end a row; the row keeps the id.
      mesh: where to run; the batch is rounded up to a multiple of its rows.

    Returns:
      Ids, log-probabilities and lengths, one row per prompt.
    """
    count = len(prompts)
    rows = _round_up(count, BATCH_STEP * mesh.shape[DATA]) if count > 1 else mesh.shape[DATA]
    width = _round_up(max(map(len, prompts)), PROMPT_STEP)
    tokens = np.zeros((rows, width), np.int32)
    padding = np.full(rows, width, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :] = prompt
        padding[i] = width - len(prompt)
    row_seeds = np.zeros(rows, np.int32)
    row_seeds[:count] = seeds
    with jax.set_mesh(mesh):
        ids, logprobs = _generate(
            model,
            prefix,
            place(mesh, tokens, TOKENS_BT),
            place(mesh, padding, P(DATA)),
            place(mesh, row_seeds, P(DATA)),
            jnp.asarray(temperature, jnp.float32),
            jnp.asarray(max_new_tokens, jnp.int32),
            room=_round_up(max_new_tokens, ANSWER_STEP),
            stop_ids=stop_ids,
        )
    ids = np.asarray(ids)[:count, :max_new_tokens]
    logprobs = np.asarray(logprobs)[:count, :max_new_tokens]
    stops = np.isin(ids, np.asarray(stop_ids, np.int32))
    lengths = np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, max_new_tokens)
    return Sampled(ids, logprobs, lengths)
