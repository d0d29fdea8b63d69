"""The programs of the engine: reading a piece, decoding, loading slots into pages.

Each takes the pool and the last token of every row, and hands them on in place: tokens go from one
step to the next on the device, so a step can start before the host has seen those of the last one.
A program is compiled for each number of tokens and rows, whatever they are and follow.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from cartridges_jax.attention import PagedKV
from cartridges_jax.engine.batch import DecodeArrays, PieceArrays
from cartridges_jax.engine.sampling import Told, draw, tell
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.transformer import KV, Transformer
from cartridges_jax.sharding import DATA, head_axis

TOLD_TOKENS = 64  # of a prompt, whose logits exist at a time
# On CPU, XLA by default runs independent products of a step beside each other, for which it keeps
# copies of more weights: 22 instead of 17 ms for the products of a model of 57 M parameters.
COMPILER_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class Weights:
    """A model taken apart once: an unstacked one has hundreds of arrays, and looking for them in
    its modules takes 10 ms, a quarter of a small model's step.
    """

    def __init__(self, model: Transformer):
        self.leaves, self.structure = jax.tree.flatten(model)


jax.tree_util.register_pytree_node(
    Weights,
    lambda w: (w.leaves, w.structure),
    lambda structure, leaves: _weights(leaves, structure),
)


def _weights(leaves: Any, structure: Any) -> Weights:
    made = object.__new__(Weights)
    made.leaves, made.structure = leaves, structure
    return made


def _model(weights: Weights) -> Transformer:
    return jax.tree.unflatten(weights.structure, weights.leaves)


class State(NamedTuple):
    """What stays on the device from step to step."""

    pool: PagedKV
    last: jax.Array  # [D * (rows + 1)], each row's token that is not read yet; one more is nobody's


def new_state(
    config: ModelConfig, mesh: Mesh, pages: int, page_size: int, rows: int, dtype: Any, apart: bool
) -> State:
    """An empty pool of `pages` pages on each device group of "data", and `rows` rows there.

    It takes `pages * page_size * config.kv_floats_per_token` numbers, split over "model" where that
    divides the kv heads; `apart`: each layer's in an array of its own.
    """
    L, K, H, D = config.num_layers, config.num_kv_heads, config.head_dim, mesh.shape[DATA]

    @jax.jit
    def make() -> State:
        spec = P(DATA, head_axis(K), None, None)
        shape = (D * pages, K, page_size, H)
        if apart:
            k, v = (tuple(jnp.zeros(shape, dtype, out_sharding=spec) for _ in range(L)),) * 2
        else:
            k = v = jnp.zeros((L, *shape), dtype, out_sharding=P(None, *spec))
        return State(PagedKV(k, v), jnp.zeros(D * (rows + 1), jnp.int32, out_sharding=P(DATA)))

    with jax.set_mesh(mesh):
        return make()


def placed(mesh: Mesh, arrays: Any) -> Any:
    """The arrays of a step on the mesh: all but single numbers split over "data"."""

    def spec(x: Any) -> P:
        return P(DATA, *[None] * (np.ndim(x) - 1)) if np.ndim(x) else P()

    shardings = jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), arrays)
    return jax.device_put(arrays, shardings)


def _on_each(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Runs a function on each device's part of arrays that are split over "data"."""
    specs = tuple(jax.typeof(x).sharding.spec for x in arrays)
    return jax.shard_map(function, in_specs=specs, out_specs=P(DATA), check_vma=False)(*arrays)


def _told(last: jax.Array, slots: jax.Array, drawn: Told) -> jax.Array:
    """The last tokens, with those that were drawn."""
    return _on_each(lambda last, at, new: last.at[at].set(new), last, slots, drawn.token)


@functools.partial(
    jax.jit,
    static_argnames="tells_prompt",
    donate_argnames="state",
    compiler_options=COMPILER_OPTIONS,
)
def read_piece(
    weights: Weights, state: State, piece: PieceArrays, *, tells_prompt: bool
) -> tuple[State, Told, Told | None]:
    """Reads the tokens of a piece, and draws one behind each prompt that ends in it.

    Returns the state, what was drawn and, if it is asked for, what the model had to say of the
    token behind each one of the piece, see `in_order`.
    """
    model = _model(weights)
    hidden, pool = model.on_pages(piece.token_ids, piece.positions, state.pool, piece.step)
    ends = _on_each(lambda hidden, at: hidden[0, at[0]][:, None], hidden, piece.ends)
    drawn = draw(model.logits(ends)[:, 0], piece.draws)
    state = State(pool, _told(state.last, piece.slots, drawn))
    return state, drawn, _of_prompt(model, hidden, piece.next_ids) if tells_prompt else None


def _of_prompt(model: Transformer, hidden: jax.Array, next_ids: jax.Array) -> Told:
    """What is told of given next tokens [D, T], the logits of a few at a time.

    Everything is [T / few, D * few, ...]; `in_order` puts it in order.
    """
    T = hidden.shape[1]
    size = math.gcd(T, TOLD_TOKENS)

    def some(i: jax.Array) -> Told:
        part = jax.lax.dynamic_slice_in_dim(hidden, i * size, size, 1)
        ids = jax.lax.dynamic_slice_in_dim(next_ids, i * size, size, 1)
        logits = _on_each(lambda x: x.reshape(-1, x.shape[-1])[:, None], part)
        ids = _on_each(lambda x: x.reshape(-1), ids)
        return tell(model.logits(logits)[:, 0], ids, jnp.asarray(True))

    return jax.lax.map(some, jnp.arange(T // size))


def in_order(told: jax.Array, groups: int) -> np.ndarray:
    """What `_of_prompt` tells, on the host, as [groups, T, ...]."""
    x = np.asarray(told)
    x = x.reshape(len(x), groups, -1, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(groups, -1, *x.shape[3:])


@functools.partial(jax.jit, donate_argnames="state", compiler_options=COMPILER_OPTIONS)
def decode(weights: Weights, state: State, rows: DecodeArrays) -> tuple[State, Told]:
    """Reads the last token of each row, and draws the next one."""
    model = _model(weights)
    tokens = _on_each(lambda last, at: last[at], state.last, rows.slots)
    hidden, pool = model.on_pages(tokens[:, None], rows.positions[:, None], state.pool, rows.step)
    drawn = draw(model.logits(hidden)[:, 0], rows.draws)
    return State(pool, _told(state.last, rows.slots, drawn)), drawn


@functools.partial(jax.jit, donate_argnames="state")
def load_slots(state: State, kv: KV, pages: Int[Array, "D n"]) -> State:
    """Writes slots [L, P, K, H] to the pages that each device of "data" has for them.

    Where it has none, and behind the last slot, to its page 0.
    """
    pool = state.pool
    is_apart = isinstance(pool.k, tuple)
    size, n = pool.page_size, pages.shape[1]
    L, slots, K, H = kv.k.shape
    heads = head_axis(K)

    def write(pool: Any, ids: jax.Array, x: jax.Array) -> Any:
        x = jnp.pad(x, ((0, 0), (0, n * size - slots), (0, 0), (0, 0)))
        x = x.reshape(L, n, size, -1, H).swapaxes(2, 3).astype(jax.tree.leaves(pool)[0].dtype)
        if is_apart:
            return tuple(own.at[ids[0]].set(x[i]) for i, own in enumerate(pool))
        return pool.at[:, ids[0]].set(x)

    spec = P(DATA, heads, None, None) if is_apart else P(None, DATA, heads, None, None)
    written: Any = jax.shard_map(
        write,
        in_specs=(spec, P(DATA, None), P(None, None, heads, None)),
        out_specs=spec,
        check_vma=False,
    )
    return state._replace(
        pool=PagedKV(*(written(x, pages, new) for x, new in zip(pool, kv, strict=True)))
    )
