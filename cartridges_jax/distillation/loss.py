"""The distillation loss, in chunks of positions: `[B, T, V]` never exists.

For each target position, with the teacher's top-J log-probabilities t_j of the ids i_j,

    loss = -sum_j exp(t_j) * log_softmax(student)[i_j]

over the student's full vocabulary: the cross entropy of the paper's runs (arXiv 2506.06266,
section 4.2), not renormalised and without a tail. With J = 1 and t = 0 it is the next-token loss.

Time grows with B * M * D * V, memory with B * CHUNK * V; a chunk's logits are made again in the
backward pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import ACT_BTD, DATA, TOKENS_BT

CHUNK = 64  # target positions of a row whose logits exist at a time


class Targets(NamedTuple):
    """What the teacher said at M positions of each row; unused places have weight 0."""

    index: Int[Array, "B M"]  # position in the row whose *next* token is predicted
    top_ids: Int[Array, "B M J"]
    top_logprobs: Float[Array, "B M J"]
    weight: Float[Array, "B M"]


class LossSums(NamedTuple):
    """Sums over target positions: of the loss, of the KL over the top J, and their number."""

    loss: jax.Array
    kl: jax.Array
    count: jax.Array


def gather_positions(
    hidden: Float[Array, "B T D"], index: Int[Array, "B M"]
) -> Float[Array, "B M D"]:
    """Picks positions of each row, on the device that holds the row."""

    def local(hidden, index):
        return jnp.take_along_axis(hidden, index[..., None], axis=1)

    return jax.shard_map(local, in_specs=(ACT_BTD, TOKENS_BT), out_specs=ACT_BTD, check_vma=False)(
        hidden, index
    )


def distillation_loss(
    model: Transformer, hidden: Float[Array, "B T D"], targets: Targets
) -> LossSums:
    """Sums the loss over all target positions; see the module's head.

    Args:
      model: gives the LM head.
      hidden: normed hidden states of the student.
      targets: M is padded up to a multiple of CHUNK here.
    """
    picked = gather_positions(hidden, targets.index)
    B, M, _ = picked.shape
    extra = -M % CHUNK

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(
            B,
            (M + extra) // CHUNK,
            CHUNK,
            *x.shape[2:],
            out_sharding=P(DATA, None, None, *[None] * (x.ndim - 2)),
        )
        return jnp.moveaxis(x, 1, 0)

    @jax.checkpoint
    def one(h, ids, t, weight):
        # Picking single ids of a sharded vocabulary needs the chunk's logits whole.
        logits = jax.sharding.reshard(model.logits(h), P(DATA, None, None))
        lse = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        student = _take_last(logits, ids) - lse  # [B, CHUNK, J]
        p = jnp.exp(t) * weight[..., None]
        return -jnp.sum(p * student), jnp.sum(p * (t - student))

    def body(sums, chunk):
        loss, kl = one(*chunk)
        return (sums[0] + loss, sums[1] + kl), None

    parts = (picked, targets.top_ids, targets.top_logprobs, targets.weight)
    zero = jnp.zeros((), jnp.float32)
    (loss, kl), _ = jax.lax.scan(body, (zero, zero), tuple(map(chunks, parts)))
    return LossSums(loss, kl, jnp.sum(targets.weight))


def _take_last(logits: Float[Array, "B M V"], ids: Int[Array, "B M J"]) -> Float[Array, "B M J"]:
    rows = P(DATA, None, None)

    def local(logits, ids):
        return jnp.take_along_axis(logits, ids, axis=-1)

    return jax.shard_map(local, in_specs=(rows, rows), out_specs=rows, check_vma=False)(logits, ids)
