"""How the next token is drawn from the logits of a batch.

A row's randomness is a function of its seed and the number of the token alone, never of its
neighbours. A sample costs one uniform number a row and one pass over the vocabulary.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.sharding import DATA

# What is compiled in: sorting costs as much as a small model's step.
Draw = Literal["greedy", "all", "truncated"]
_BLOCK = 256  # ids whose probabilities are summed before one of them is looked for


class Sampling(NamedTuple):
    """How a token is drawn from the logits.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest tokens (0: all), then `top_p` the
    fewest of them that hold this share of their probability (1: all).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def draw(self) -> Draw:
        if self.temperature == 0:
            return "greedy"
        return "all" if self.top_k == 0 and self.top_p >= 1 else "truncated"


def choose(
    logits: Float[Array, "B V"],
    seeds: Int[Array, "B"],
    step: jax.Array,
    sampling: Sampling,
    how: Draw,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token per row; returns ids and their log-probabilities.

    The log-probability is that of the undisturbed model, at temperature 1.
    """
    logits = jax.sharding.reshard(logits, P(DATA, None))
    ids = jnp.arange(logits.shape[1])
    if how == "greedy":
        # As argmax, which XLA's CPU compiler does one number at a time.
        best = logits == logits.max(axis=-1, keepdims=True)
        token = jnp.min(jnp.where(best, ids, ids[-1]), axis=-1).astype(jnp.int32)
    else:
        scores = logits / jnp.asarray(sampling.temperature)
        if how == "truncated":
            scores = _keep_likely(scores, jnp.asarray(sampling.top_k), jnp.asarray(sampling.top_p))
        token = _sample(scores, _uniform(seeds, step))
    of_token = jnp.sum(jnp.where(ids == token[:, None], logits, 0.0), axis=-1)
    return token, of_token - jax.nn.logsumexp(logits, axis=-1)


def _uniform(seeds: Int[Array, "B"], step: jax.Array) -> Float[Array, "B"]:
    """One number in [0, 1) for each row."""

    def one(seed: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step))

    drawn = jax.vmap(one)(jax.sharding.reshard(seeds, P()))
    return jax.sharding.reshard(drawn, P(DATA))


def _sample(scores: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """Draws by the inverse of the distribution function: first a block of ids, then one in it."""
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    B, V = weights.shape
    count = -(-V // _BLOCK)
    blocks = jnp.pad(weights, ((0, 0), (0, count * _BLOCK - V))).reshape(B, count, _BLOCK)
    sums = blocks.sum(axis=-1)
    up_to = jnp.cumsum(sums, axis=-1)
    wanted = uniform * up_to[:, -1]
    block = _first_above(up_to, wanted, sums)
    chosen = jnp.arange(count) == block[:, None]
    inside = jnp.einsum("Bn,Bni->Bi", chosen.astype(blocks.dtype), blocks)
    before = jnp.sum(jnp.where(chosen, up_to - sums, 0.0), axis=-1)
    token = _first_above(jnp.cumsum(inside, axis=-1), wanted - before, inside)
    return (block * _BLOCK + token).astype(jnp.int32)


def _first_above(
    up_to: Float[Array, "B n"], wanted: Float[Array, "B"], weights: Float[Array, "B n"]
) -> Int[Array, "B"]:
    """The first entry whose cumulated weight exceeds what is wanted, never one of no weight."""
    possible = weights > 0
    above = (up_to > wanted[:, None]) & possible
    # Rounding may leave nothing above: then it is the last one that is possible.
    last = up_to.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    return jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last)


def _keep_likely(scores: Float[Array, "B V"], top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Sets the scores that top_k and top_p leave out to -inf; the likeliest always stays."""
    best_first = -jnp.sort(-scores, axis=-1)
    rank = jnp.arange(scores.shape[-1])
    kept = (rank < top_k) | (top_k == 0)
    shares = jax.nn.softmax(jnp.where(kept, best_first, -jnp.inf), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    kept &= (before < top_p) | (rank == 0)
    last = jnp.min(jnp.where(kept, best_first, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= last, scores, -jnp.inf)
