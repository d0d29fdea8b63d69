"""The distillation loss: `[B, T, V]` never exists, neither as logits nor as their gradient.

For each target position, with the teacher's top-J log-probabilities t_j of the ids i_j,

    loss = -sum_j exp(t_j) * log_softmax(student)[i_j]

over the student's full vocabulary: the cross entropy of the paper's runs (arXiv 2506.06266,
section 4.2), not renormalised and without a tail. With J = 1 and t = 0 it is the next-token loss.

Only positions with targets reach the LM head, CHUNK at a time. Where a gradient is wanted, a
chunk's gradient with respect to its hidden states is computed together with its loss, while its
logits exist: the head's product runs twice for each position, not three times, and what is kept is
one hidden state each. With the vocabulary over "model", each device sees its own part of the
logits; what is summed over devices are a few numbers a position.

Time grows with B * M * D * V, memory with CHUNK * V / devices + B * M * D.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, TOKENS_BT

CHUNK = 128  # target positions of a device whose logits exist at a time


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

    It is differentiable with respect to `hidden` alone: the base is frozen, and the gradient of its
    LM head is not computed (it comes out as zero).

    Args:
      model: gives the LM head.
      hidden: normed hidden states of the student.
      targets: what the teacher said, and where.
    """
    head = model.embedding if model.lm_head is None else model.lm_head
    scale = None if head.scale is None else head.scale[...]
    picked = gather_positions(hidden, targets.index)
    # The gradients of loss and KL with respect to the student are the same.
    total, constant = _cross_entropy(
        picked, head.weight[...], scale, targets.top_ids, targets.top_logprobs, targets.weight
    )
    return LossSums(total, total + constant, jnp.sum(targets.weight))


@jax.custom_vjp
def _cross_entropy(picked, head, scale, top_ids, top_logprobs, weight):
    """The summed loss, and the teacher's part of the KL (which has no gradient)."""
    loss, constant, _ = _in_chunks(False, picked, head, scale, top_ids, top_logprobs, weight)
    return loss, constant


def _forward(picked, head, scale, top_ids, top_logprobs, weight):
    arrays = (picked, head, scale, top_ids, top_logprobs, weight)
    loss, constant, d_picked = _in_chunks(True, *arrays)
    return (loss, constant), d_picked


def _backward(d_picked, gradients):
    d_loss, _ = gradients
    frozen = (None,) * 5
    return (d_picked * d_loss).astype(d_picked.dtype), *frozen


_cross_entropy.defvjp(_forward, _backward)


def _in_chunks(with_gradient: bool, *arrays: Any) -> tuple[jax.Array, ...]:
    """Runs `_device_sums` where the rows and the parts of the vocabulary are."""

    def local(picked, head, scale, ids, t, weight):
        loss, constant, d_picked = _device_sums(
            picked, head, scale, ids, t, weight, with_gradient=with_gradient
        )
        return jax.lax.psum(loss, DATA), jax.lax.psum(constant, DATA), d_picked

    scale = None if arrays[2] is None else P(MODEL)
    rows = P(DATA, None, None)
    return jax.shard_map(
        local,
        in_specs=(ACT_BTD, P(MODEL, None), scale, rows, rows, TOKENS_BT),
        out_specs=(P(), P(), ACT_BTD),
        check_vma=False,
    )(*arrays)


def _device_sums(picked, head, scale, ids, t, weight, *, with_gradient: bool):
    """Loss and teacher's constant of one device's rows, and the loss's gradient of `picked`.

    `head` is this device's part of the vocabulary, [V / devices, D].
    """
    B, M, D = picked.shape
    V = head.shape[0]
    first = jax.lax.axis_index(MODEL) * V
    extra = -(B * M) % CHUNK

    def chunks(x: jax.Array) -> jax.Array:
        x = x.reshape(B * M, *x.shape[2:])
        x = jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, CHUNK, *x.shape[1:])

    def logits_of(h: jax.Array) -> jax.Array:
        out = jnp.einsum("MD,VD->MV", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
        return out if scale is None else out * scale

    def one(sums: Any, chunk: Any) -> Any:
        h, ids, t, weight = chunk  # [m, D], [m, J], [m, J], [m]
        logits, pull = jax.vjp(logits_of, h)
        top = jax.lax.pmax(logits.max(-1), MODEL)[:, None]
        exps = jnp.exp(logits - top)
        total = jax.lax.psum(exps.sum(-1), MODEL)[:, None]
        own = (ids >= first) & (ids < first + V)
        at = jnp.where(own, ids - first, 0)
        found = jnp.where(own, jnp.take_along_axis(logits, at, axis=-1), 0.0)
        student = jax.lax.psum(found, MODEL) - top - jnp.log(total)  # [m, J]
        p = jnp.exp(t) * weight[:, None]
        sums = (sums[0] - jnp.sum(p * student), sums[1] + jnp.sum(p * t))
        if not with_gradient:
            return sums, None
        # d loss / d logits = softmax * sum_j p_j, less p_j at the teacher's ids
        d_logits = exps * (p.sum(-1, keepdims=True) / total)
        row = jnp.arange(CHUNK)[:, None]
        d_logits = d_logits.at[row, at].add(jnp.where(own, -p, 0.0))
        [d_h] = pull(d_logits)
        return sums, jax.lax.psum(d_h, MODEL)

    zero = jnp.zeros((), jnp.float32)
    (loss, constant), d_h = jax.lax.scan(
        one, (zero, zero), tuple(map(chunks, (picked, ids, t, weight)))
    )
    if not with_gradient:
        return loss, constant, picked  # not looked at
    return loss, constant, d_h.reshape(-1, D)[: B * M].reshape(B, M, D)
