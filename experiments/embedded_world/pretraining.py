"""The losses that the embedded model is trained with, and their gradient, piece by piece.

Beside the loss on words some attention heads have one of their own: where to look (`pointers.py`).
Logits exist for target positions alone, [B, M, V]; a batch comes in pieces [N, B, T], and of each
piece the activations of one layer at a time are kept (rematerialisation), so memory does not grow
with N.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention import SAVED_NAMES, Mask, attention
from cartridges_jax.models.transformer import Transformer, rms_norm
from cartridges_jax.sharding import ACT_BTD, DATA, TOKENS_BT
from experiments.embedded_world import training_data

# Layer and head that learn to look where each group of pointers says: gather what a statement is
# about, find the statement, copy its words, check what follows from it. The weights are of each
# group's mean loss beside the words' mean loss.
POINTER_HEADS = ((2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (4, 0), (4, 1))
POINTER_WEIGHTS = (0.1, 0.1, 0.1, 0.1, 1.0, 1.0, 0.3)


@jax.custom_vjp
def pick(
    hidden: Float[Array, "B T D"], index: Int[Array, "B M"], place: Int[Array, "B T"]
) -> Float[Array, "B M D"]:
    """The hidden states at target positions; `place` is the way back, M for none.

    With the way back known the gradient is a gather too: a scatter is slow on a CPU.
    """
    del place
    return jnp.take_along_axis(hidden, index[..., None], axis=1)


def _pick_fwd(hidden, index, place):
    return pick(hidden, index, place), place


def _pick_bwd(place, g):
    g = jnp.pad(g, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(g, place[..., None], axis=1), None, None


pick.defvjp(_pick_fwd, _pick_bwd)


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "B M V"], targets: Int[Array, "B M"]) -> Float[Array, "B M"]:
    """Negative log-likelihood; its gradient needs neither gather nor scatter."""
    return _cross_entropy_fwd(logits, targets)[0]


def _cross_entropy_fwd(logits, targets):
    lse = jax.nn.logsumexp(logits, axis=-1)
    hot = targets[..., None] == jnp.arange(logits.shape[-1])
    return lse - jnp.sum(jnp.where(hot, logits, 0.0), axis=-1), (logits, targets, lse)


def _cross_entropy_bwd(saved, g):
    logits, targets, lse = saved
    hot = targets[..., None] == jnp.arange(logits.shape[-1])
    return (jnp.exp(logits - lse[..., None]) - hot) * g[..., None], None


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def run(model: Transformer, tokens: Int[Array, "B T"]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states before the LM head [B, T, D]; rotated queries and keys [L, B, T, N, H]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape, out_sharding=TOKENS_BT)
    turn, start = model.turn(positions), jnp.zeros_like(tokens)
    scale = model.config.head_dim**-0.5
    # cuDNN's kernels are for half precision.
    dtype = jnp.bfloat16 if jax.default_backend() == "gpu" else model.dtype

    def body(x, block):
        q, k, v = block.qkv(x, turn)
        queries, keys, values = (heads.astype(dtype) for heads in (q, k, v))
        attended = attention(queries, keys, values, Mask(start), scale=scale).astype(x.dtype)
        return block.mlp(block.attention_output(x, attended)), (q, k)

    policy = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    x, (q, k) = jax.lax.scan(body, model.embedding(tokens, model.dtype), model.blocks)
    return rms_norm(x, model.final_norm[...], model.config.norm_eps), q, k


def pointer_losses(
    q: Float[Array, "L B T N H"],
    k: Float[Array, "L B T N H"],
    queries: Int[Array, "B G Q"],
    keys: Int[Array, "B G Q W"],
) -> Float[Array, "B G"]:
    """Cross entropy of each pointer's head to its keys, all alike; sums over pointers.

    Args:
      q: rotated queries of all layers.
      k: rotated keys, likewise.
      queries: tokens, -1 for none.
      keys: tokens they should look at, -1 for none.
    """
    sums = []
    for group, (layer, head) in enumerate(POINTER_HEADS):
        at = jnp.maximum(queries[:, group], 0)  # [B, Q]
        asked = jnp.take_along_axis(q[layer, :, :, head], at[..., None], axis=1)
        s = jnp.einsum("BQH,BTH->BQT", asked, k[layer, :, :, head]) * q.shape[-1] ** -0.5
        s = jnp.where(jnp.arange(k.shape[2]) <= at[..., None], s, -1e30)
        log_p = s - jax.nn.logsumexp(s, axis=-1, keepdims=True)
        there = keys[:, group] >= 0
        found = jnp.take_along_axis(log_p, jnp.maximum(keys[:, group], 0), axis=-1)
        count = jnp.maximum(there.sum(-1), 1)
        sums.append(-jnp.sum(jnp.where(there, found, 0.0).sum(-1) / count, axis=-1))
    return jnp.stack(sums, axis=1)


def loss_fn(
    model: Transformer,
    batch: dict[str, jax.Array],
    num_weights: jax.Array,
    num_pointers: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean loss of a piece's share of a batch, and sums to report: see `mean_gradient`."""
    hidden, q, k = run(model, batch["token_ids"])
    at = (ACT_BTD, TOKENS_BT, TOKENS_BT)
    picked = jax.shard_map(pick, in_specs=at, out_specs=ACT_BTD, check_vma=False)(
        hidden, batch["index"], batch["place"]
    )
    nll = cross_entropy(model.logits(picked), batch["target"])
    weight = batch["weight"]
    answers = weight == training_data.WEIGHT_ANSWER
    rows = P(DATA)
    q, k = (jax.sharding.reshard(x, P(None, DATA)) for x in (q, k))
    pointed = jax.shard_map(
        pointer_losses, in_specs=(P(None, DATA), P(None, DATA), rows, rows), out_specs=rows
    )(q, k, batch["queries"], batch["keys"])
    sums = {
        "loss": jnp.sum(nll * weight) / num_weights,
        "answers": jnp.stack([jnp.sum(nll * answers), jnp.sum(answers).astype(jnp.float32)]),
        "pointers": jnp.sum(pointed, axis=0) / jnp.maximum(num_pointers, 1),
    }
    return sums["loss"] + jnp.dot(jnp.asarray(POINTER_WEIGHTS), sums["pointers"]), sums


def mean_gradient(
    model: Transformer, batch: dict[str, jax.Array]
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient over a batch of pieces [N, B, T], one piece at a time; and what it is of.

    Returns:
      The gradient; `loss`, of the words; `answer_loss`, of the answers' words; `pointers` [G].
    """
    num_weights = jnp.sum(batch["weight"])
    num_pointers = jnp.sum(batch["queries"] >= 0, axis=(0, 1, 3))

    def add(carry, piece):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (_, sums), found = gradient(model, piece, num_weights, num_pointers)
        return jax.tree.map(jnp.add, carry, (nnx.state(found), sums)), None

    groups = len(POINTER_HEADS)
    sums = {"loss": jnp.zeros(()), "answers": jnp.zeros(2), "pointers": jnp.zeros(groups)}
    start = (jax.tree.map(jnp.zeros_like, nnx.state(model)), sums)
    (grads, sums), _ = jax.lax.scan(add, start, batch)
    of_answers, count = sums.pop("answers")
    return grads, sums | {"answer_loss": of_answers / jnp.maximum(count, 1)}
