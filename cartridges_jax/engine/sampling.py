"""How the next token is drawn from the logits of a batch.

A row's randomness is a function of its seed and the number of the token alone, never of its
neighbours. A sample costs one uniform number a row and one pass over the vocabulary.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from cartridges_jax.sharding import DATA

# What is compiled in: sorting costs as much as a small model's step.
Draw = Literal["greedy", "all", "truncated"]
DRAWS = get_args(Draw)
Numbers = Any  # on the device, or on the host while a step is planned
TOP = 20  # likeliest tokens that are told with their log-probabilities, as many as vLLM tells
_BLOCK = 256  # ids whose probabilities are summed before one of them is looked for


class Sampling(NamedTuple):
    """How a token is drawn from the logits.

    `temperature` 0 is greedy; `top_k` keeps the k likeliest tokens (0: all), then `top_p` the
    fewest of them that hold this share of their probability (1: all), and `min_p` those that are
    at least this many times as likely as the likeliest (0: all).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def draw(self) -> Draw:
        if self.temperature == 0:
            return "greedy"
        is_whole = self.top_k == 0 and self.top_p >= 1 and self.min_p == 0
        return "all" if is_whole else "truncated"


class Draws(NamedTuple):
    """What decides the next token of each row; but for `how` and `with_top` one for each."""

    seed: Numbers  # [B], int32 as all that are whole
    index: Numbers  # [B], of the token in its answer
    temperature: Numbers  # [B], float32 as all that are not
    top_k: Numbers  # [B]
    top_p: Numbers  # [B]
    min_p: Numbers  # [B]
    how: Numbers  # the index in DRAWS of the most that any row needs
    with_top: Numbers  # whether any row wants the likeliest tokens


class Told(NamedTuple):
    """Tokens, and log-probabilities under the model itself, at temperature 1 and not cut."""

    token: Int[Array, "B"]
    logprob: Float[Array, "B"]
    top_ids: Int[Array, "B TOP"]  # the likeliest, best first; zeros where no row wants them
    top_logprobs: Float[Array, "B TOP"]


def draw(logits: Float[Array, "B V"], draws: Draws) -> Told:
    """Draws the next token of each row.

    What is not asked for costs nothing: sorting takes as long as a step of a small model.
    """
    logits = jax.sharding.reshard(logits, P(DATA, None))
    V = logits.shape[1]
    ids = jnp.arange(V)
    # As argmax, which XLA's CPU compiler does one number at a time.
    best = logits == logits.max(axis=-1, keepdims=True)
    greedy = jnp.min(jnp.where(best, ids, V - 1), axis=-1).astype(jnp.int32)

    def drawn(is_cut: bool) -> jax.Array:
        scores = logits / jnp.where(draws.temperature > 0, draws.temperature, 1.0)[:, None]
        scores = _keep_likely(scores, draws.top_k, draws.top_p, draws.min_p) if is_cut else scores
        token = _sample(scores, _uniform(draws.seed, draws.index))
        return jnp.where(draws.temperature > 0, token, greedy)

    token = jax.lax.switch(draws.how, [lambda: greedy, lambda: drawn(False), lambda: drawn(True)])
    return tell(logits, token, draws.with_top)


def tell(logits: Float[Array, "B V"], token: Int[Array, "B"], with_top: Bool[Array, ""]) -> Told:
    """Log-probabilities of given tokens, and of the likeliest ones if they are wanted."""
    logits = jax.sharding.reshard(logits, P(DATA, None))
    B, V = logits.shape
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    of_token = jnp.sum(jnp.where(jnp.arange(V) == token[:, None], logits, 0.0), axis=-1)
    count = min(TOP, V)

    def top() -> tuple[jax.Array, jax.Array]:
        found, at = jax.lax.top_k(logits, count)
        return at.astype(jnp.int32), found - normaliser[:, None]

    def no_top() -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros_like(logits, shape=(B, count), out_sharding=P(DATA, None))
        return nothing.astype(jnp.int32), nothing

    return Told(token, of_token - normaliser, *jax.lax.cond(with_top, top, no_top))


def _uniform(seeds: Int[Array, "B"], index: Int[Array, "B"]) -> Float[Array, "B"]:
    """One number in [0, 1) for each row."""

    def one(seed: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), index))

    drawn = jax.vmap(one)(*(jax.sharding.reshard(x, P()) for x in (seeds, index)))
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


def _keep_likely(
    scores: Float[Array, "B V"],
    top_k: Int[Array, "B"],
    top_p: Float[Array, "B"],
    min_p: Float[Array, "B"],
) -> jax.Array:
    """Sets the scores that are left out to -inf; the likeliest always stays."""
    best_first = -jnp.sort(-scores, axis=-1)
    rank = jnp.arange(scores.shape[-1])
    top_k = top_k[:, None]
    kept = (rank < top_k) | (top_k == 0)
    shares = jax.nn.softmax(jnp.where(kept, best_first, -jnp.inf), axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    kept &= before < top_p[:, None]
    kept &= best_first - best_first[:, :1] >= jnp.log(min_p)[:, None]
    kept |= rank == 0
    last = jnp.min(jnp.where(kept, best_first, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= last, scores, -jnp.inf)
