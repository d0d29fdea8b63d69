"""Batched generation whose token loop runs inside `jit`.

Prompts of different lengths are padded on the left, so that all rows write to the same cache slot;
a row's own random stream depends on (seed, step) alone, never on its neighbours. Shapes are rounded
up to a few sizes, so that few programs are compiled. A caller that wants to see the text while it
grows, or to stop by its text, advances a few tokens at a time; the cache stays on the device. When
three rows of four have ended, the others go on in a smaller batch.

A step reads the weights once, the prefix once for all rows, and the rows' caches.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.sampling import Draw, Sampling, choose
from cartridges_jax.models.transformer import KV, Prefix, Transformer
from cartridges_jax.shapes import few_sizes, power_of_two, round_up
from cartridges_jax.sharding import DATA, TOKENS_BT, place

LEAST_PROMPT = 32  # tokens; lengths are rounded up to few sizes from this one on
ANSWER_STEP = 64  # room for new tokens; how many are made is not compiled in
CACHE_STEP = 128  # tokens of a row in the cache; where answers begin in it is not compiled in
LEAST_BATCH = 8  # rows; batches are of 1, 8, 16, 32, ... rows
# Tokens after which rows that have ended may leave; multiples, however one advances.
SHRINK_STEP = 16
SHRINK_TO = 4  # rows leave when this many times fewer are enough: each size is a program to compile
MOST_APART = 4 * 2**30  # bytes of blocks that a CPU holds a second time while it decodes

# On CPU, XLA by default runs independent products of a step beside each other, for which it keeps
# copies of more weights: 22 instead of 17 ms for the products of a model of 57 M parameters.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class DecodeState(NamedTuple):
    """A batch whose answers are being made, on the device."""

    step: jax.Array  # tokens made so far, int32 scalar
    first_new: jax.Array  # cache index of the first of them, int32 scalar
    cache: KV  # of prompts and new tokens, see `KV.as_cached`
    logits: jax.Array  # of the next token, [B, V]
    token_ids: jax.Array  # [B, room]
    logprobs: jax.Array  # [B, room]
    done: jax.Array  # [B]


@functools.partial(jax.jit, static_argnames=("room", "in_layers"))
def _prefill(
    model: Transformer,
    prefix: Prefix | None,
    token_ids: Int[Array, "B T"],
    padding: Int[Array, "B"],
    *,
    room: int,
    in_layers: bool,
) -> DecodeState:
    """Reads the prompts and makes room for `room` new tokens; each layer's cache apart if asked."""
    B, T = token_ids.shape
    start = 0 if prefix is None else prefix.next_position
    first_key = jnp.broadcast_to(padding[:, None], (B, T), out_sharding=TOKENS_BT)
    positions = jnp.maximum(jnp.arange(T) - first_key, 0) + start
    hidden, own = model(token_ids, positions, first_key, prefix=prefix)
    cache = own.as_cached(round_up(T + room, CACHE_STEP) - T)
    cache = cache.layers() if in_layers else cache
    logits = model.logits(hidden[:, -1:])[:, 0]
    empty = jnp.zeros_like(token_ids, shape=(B, room), out_sharding=TOKENS_BT)
    done = padding >= T  # rows that only round the batch up
    step, first_new = jnp.zeros((), jnp.int32), jnp.full((), T, jnp.int32)
    return DecodeState(step, first_new, cache, logits, empty, empty.astype(jnp.float32), done)


@functools.partial(
    jax.jit,
    static_argnames=("stop_ids", "how"),
    donate_argnames="state",
    compiler_options=COMPILER_OPTIONS,
)
def advance_batch(
    model: Transformer,
    prefix: Prefix | None,
    state: DecodeState,
    padding: Int[Array, "B"],
    seeds: Int[Array, "B"],
    sampling: Sampling,
    until: jax.Array,
    *,
    stop_ids: tuple[int, ...],
    how: Draw,
) -> DecodeState:
    """Makes tokens until there are `until`, or every row is done.

    The prefix is as `_for_decoding` makes it; an unstacked model takes everything by layers.
    """
    start = 0 if prefix is None else prefix.next_position
    column = padding[:, None]

    def keep_going(state):
        return (state.step < until) & ~jnp.all(state.done)

    def advance(state):
        step, first_new, cache, logits, ids, logprobs, done = state
        token, logprob = choose(logits, seeds, step, sampling, how)
        token = jnp.where(done, 0, token)
        ids = jax.lax.dynamic_update_slice(ids, token[:, None], (0, step))
        logprobs = jax.lax.dynamic_update_slice(logprobs, logprob[:, None], (0, step))
        stopped = functools.reduce(jnp.logical_or, [token == i for i in stop_ids], done)
        at = first_new + step
        hidden, cache = model.decode(
            token[:, None], at - column + start, column, cache, at, prefix=prefix
        )
        logits = model.logits(hidden)[:, 0]
        return DecodeState(step + 1, first_new, cache, logits, ids, logprobs, stopped)

    return jax.lax.while_loop(keep_going, advance, state)


@functools.partial(jax.jit, static_argnames="in_layers")
def _for_decoding(prefix: Prefix, *, in_layers: bool) -> Prefix:
    """A prefix as the loop over tokens reads it, layer by layer if asked."""
    kv = prefix.kv.as_cached()
    return prefix._replace(kv=kv.layers() if in_layers else kv)


def _takes_layers_apart(model: Transformer) -> bool:
    """Whether decoding is faster with a list of layers: on a CPU, if they may be held twice."""
    if jax.default_backend() != "cpu":
        return False
    return sum(x.nbytes for x in jax.tree.leaves(model.blocks)) <= MOST_APART


@jax.jit
def _take_rows(
    state: DecodeState,
    padding: Int[Array, "B"],
    seeds: Int[Array, "B"],
    index: Int[Array, "R"],
    live: Int[Array, ""],
) -> tuple[DecodeState, jax.Array, jax.Array]:
    """Some rows of a batch; those from `live` on only fill it up."""

    def rows(x: jax.Array, axis: int = 0) -> jax.Array:
        at = (slice(None),) * axis + (index,)
        return x.at[at].get(out_sharding=jax.typeof(x).sharding)

    axis = 0 if isinstance(state.cache.k, tuple) else 1
    cache = jax.tree.map(lambda x: rows(x, axis), state.cache)
    done = rows(state.done)
    done |= jax.sharding.reshard(jnp.arange(len(index)) >= live, jax.typeof(done).sharding.spec)
    taken = state._replace(
        cache=cache, logits=rows(state.logits), token_ids=rows(state.token_ids),
        logprobs=rows(state.logprobs), done=done,
    )  # fmt: skip
    return taken, rows(padding), rows(seeds)


Answer = tuple[list[int], list[float]]  # token ids and log-probabilities


class Decoding:
    """A batch of prompts whose answers are being made."""

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        *,
        seeds: Sequence[int],
        prefix: Prefix | None,
        mesh: jax.sharding.Mesh,
    ):
        """Reads the prompts.

        Args:
          model: the base, on `mesh`.
          prompts: token ids, at least one prompt, none empty; with a prefix they are suffixes.
          config: how answers are made; a row keeps the id that ends it; what its text says (`stop`,
            `enough`) is the caller's to look for.
          seeds: one per prompt.
          prefix: shared by all rows, or None.
          mesh: where to run; the batch is rounded up to a multiple of its rows.
        """
        count = len(prompts)
        self._least = LEAST_BATCH * mesh.shape[DATA]
        rows = power_of_two(count, self._least) if count > 1 else mesh.shape[DATA]
        width = few_sizes(max(map(len, prompts)), LEAST_PROMPT)
        tokens = np.zeros((rows, width), np.int32)
        padding = np.full(rows, width, np.int32)
        for i, prompt in enumerate(prompts):
            tokens[i, width - len(prompt) :] = prompt
            padding[i] = width - len(prompt)
        row_seeds = np.zeros(rows, np.int32)
        row_seeds[:count] = seeds
        self._mesh = mesh
        self._config = config
        self._prompts = list(range(count))  # which prompt each row of the batch belongs to
        self._left: dict[int, Answer] = {}  # of prompts whose rows have left the batch
        in_layers = _takes_layers_apart(model)
        with jax.set_mesh(mesh):
            self._padding = place(mesh, padding, P(DATA))
            self._seeds = place(mesh, row_seeds, P(DATA))
            self._state = _prefill(
                model,
                prefix,
                place(mesh, tokens, TOKENS_BT),
                self._padding,
                room=round_up(config.max_new_tokens, ANSWER_STEP),
                in_layers=in_layers,
            )
            self._model = model.unstacked() if in_layers else model
            self._prefix = None if prefix is None else _for_decoding(prefix, in_layers=in_layers)

    def advance(self, num_tokens: int | None = None) -> None:
        """Makes up to `num_tokens` more tokens in each row; None goes on to the end."""
        made = int(self._state.step)
        limit = self._config.max_new_tokens
        last = limit if num_tokens is None else min(limit, made + num_tokens)
        while made < last:
            until = min(last, made - made % SHRINK_STEP + SHRINK_STEP)
            with jax.set_mesh(self._mesh):
                self._state = advance_batch(
                    self._model,
                    self._prefix,
                    self._state,
                    self._padding,
                    self._seeds,
                    self._config.sampling,
                    np.int32(until),
                    stop_ids=self._config.stop_ids,
                    how=self._config.sampling.draw,
                )
            done = np.asarray(self._state.done)
            if done.all():
                return
            made = until
            if made % SHRINK_STEP == 0:
                self._shrink(done)

    def _shrink(self, done: np.ndarray) -> None:
        """Lets the rows that have ended leave, if the batch gets much smaller."""
        live = np.flatnonzero(~done)
        rows = power_of_two(len(live), self._least)
        if SHRINK_TO * rows > len(done):
            return
        self._left |= self._answers()
        index = np.zeros(rows, np.int32)
        index[: len(live)] = live
        with jax.set_mesh(self._mesh):
            self._state, self._padding, self._seeds = _take_rows(
                self._state, self._padding, self._seeds, index, np.int32(len(live))
            )
        self._prompts = [self._prompts[row] for row in live]

    def rows(self) -> list[Answer]:
        """Returns each prompt's ids and log-probabilities so far, its stop id included.

        A row that `stop` has ended goes on with meaningless ids.
        """
        found = self._left | self._answers()
        return [found[prompt] for prompt in sorted(found)]

    def _answers(self) -> dict[int, Answer]:
        """What the rows of the batch hold, by prompt."""
        made, count = int(self._state.step), len(self._prompts)
        ids = np.asarray(self._state.token_ids)[:count, :made]
        logprobs = np.asarray(self._state.logprobs)[:count, :made]
        stops = np.isin(ids, np.asarray(self._config.stop_ids, np.int32))
        ends = np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, made)
        return {
            prompt: (row[:end].tolist(), values[:end].tolist())
            for prompt, row, values, end in zip(self._prompts, ids, logprobs, ends, strict=True)
        }

    def stop(self, prompts: Sequence[int]) -> None:
        """Ends rows of prompts whose text the caller has seen enough of."""
        done = np.asarray(self._state.done).copy()
        ended = set(prompts)
        done[[row for row, prompt in enumerate(self._prompts) if prompt in ended]] = True
        self._state = self._state._replace(done=place(self._mesh, done, P(DATA)))
