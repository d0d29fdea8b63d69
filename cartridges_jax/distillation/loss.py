"""Distillation losses: `[B, T, V]` never exists, neither as logits nor as their gradient.

`distillation_loss` compares the student with the teacher's top J log-probabilities, as they are
stored: a sum over target positions of a term that a rule (`_TopJ`) defines with its gradient.

Only positions with targets reach the LM head, a chunk at a time. Where a gradient is wanted, a
chunk's gradient with respect to its hidden states is computed together with its loss, while its
logits exist: the head's product runs twice for each position, not three times, and what is kept is
one hidden state each. With the vocabulary over "model", each device sees its own part of the
logits; what is summed over devices are a few numbers a position, and the hidden gradient.

Time grows with B * M * D * V, memory with chunk * V / devices + B * M * D.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.distillation.lm_head import (
    LogitChunks,
    Logits,
    gather_positions,
    over_vocabulary,
)
from cartridges_jax.models.linear import Head
from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL

TopJ = Literal["top_j", "renormalised", "tail"]


class Targets(NamedTuple):
    """What the teacher said at M positions of each row; unused places have weight 0."""

    index: Int[Array, "B M"]  # position in the row whose *next* token is predicted
    top_ids: Int[Array, "B M J"]
    top_logprobs: Float[Array, "B M J"]
    weight: Float[Array, "B M"]


class LossSums(NamedTuple):
    """Sums over target positions: of the loss and the divergence, in nats, and their number.

    The divergence is the loss plus the teacher's sum of p log p over what the loss counts; without
    the rest of the vocabulary ("top_j") a good student's may be a little below 0.
    """

    loss: jax.Array
    kl: jax.Array
    count: jax.Array


def distillation_loss(
    model: Transformer, hidden: Float[Array, "B T D"], targets: Targets, kind: TopJ = "top_j"
) -> LossSums:
    """Sums the loss over all target positions.

    With the teacher's top-J log-probabilities t_j of the ids i_j, p_j = exp(t_j) and q the
    student's distribution over the full vocabulary:

    * "top_j": -sum_j p_j log q(i_j), the cross entropy of the paper's runs (arXiv 2506.06266,
      section 4.2), not renormalised and without the rest. With J = 1 and t = 0 it is the
      next-token loss.
    * "renormalised": the same with p_j / sum_k p_k: the teacher is taken to say nothing else, as
      where its distribution is cut to the top K (Peng et al., arXiv 2410.16215).
    * "tail": "top_j", and the rest of the vocabulary as one more outcome:
      -(1 - sum_j p_j) log(1 - sum_j q(i_j)); it holds the student's mass outside the J down.

    It is differentiable with respect to `hidden` alone: the base is frozen, and the gradient of its
    LM head is not computed (it comes out as zero). For "tail" the ids of a position must differ.

    Args:
      model: gives the LM head.
      hidden: normed hidden states of the student.
      targets: what the teacher said, and where.
      kind: which of the three.

    Raises:
      ValueError: if `kind` is none of them.
    """
    if kind not in get_args(TopJ):
        raise ValueError(f"kind must be one of {', '.join(get_args(TopJ))}, got {kind!r}")
    of_targets = (targets.top_ids, targets.top_logprobs, targets.weight)
    picked = gather_positions(hidden, targets.index)
    found: Any = _summed(_TopJ(kind), picked, model.head, of_targets)
    total, constant = found
    # The gradients of loss and KL with respect to the student are the same.
    return LossSums(total, total + constant, jnp.sum(targets.weight))


# ---- rules: the loss of a chunk, a constant, and the gradient of the logits
#
# A rule takes a chunk's logits of one device's words, and what belongs to each position. It returns
# weighted sums over the positions, of the loss and of a constant, and the loss's gradient of the
# logits.


@dataclasses.dataclass(frozen=True)
class _TopJ:
    """See `distillation_loss`; the constant is the teacher's sum of p log p."""

    kind: TopJ

    def __call__(
        self,
        logits: Logits,
        ids: Int[Array, "m J"],
        t: Float[Array, "m J"],
        weight: Float[Array, "m"],
    ) -> tuple[jax.Array, jax.Array, Float[Array, "m V"]]:
        V = logits.values.shape[1]
        logq = logits.log_softmax()
        own = (ids >= logits.first) & (ids < logits.first + V)
        at = jnp.where(own, ids - logits.first, 0)
        found = jnp.where(own, jnp.take_along_axis(logq, at, axis=-1), 0.0)
        student = jax.lax.psum(found, MODEL)  # [m, J]
        if self.kind == "renormalised":
            t = jax.nn.log_softmax(t)
        p = jnp.exp(t) * weight[:, None]
        # A teacher may rule a token out: 0 log 0 is 0.
        loss, constant = -jnp.sum(p * student), jnp.sum(jnp.where(p > 0, p * t, 0.0))
        # d loss / d logits = q * sum_j p_j, less p_j at the teacher's ids
        mass, q = p.sum(-1, keepdims=True), jnp.exp(logq)
        row = jnp.arange(len(ids))[:, None]
        gradient = q * mass
        if self.kind == "tail":
            # The student's rest is summed without the J, as 1 - sum_j q(i_j) would cancel.
            outside = q.at[row, at].multiply(jnp.where(own, 0.0, 1.0))
            rest_q = jnp.maximum(over_vocabulary(outside), jnp.finfo(jnp.float32).tiny)
            rest_p = jnp.clip(1 - jnp.exp(t).sum(-1, keepdims=True), 0.0, 1.0)
            rest = rest_p * weight[:, None]
            loss -= jnp.sum(rest * jnp.log(rest_q))
            constant += jnp.sum(jax.scipy.special.xlogy(rest, rest_p))
            gradient += q * rest - rest * (outside / rest_q)
        return loss, constant, gradient.at[row, at].add(jnp.where(own, -p, 0.0))


# ---- the sum over chunks, with the gradient made on the way


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(
    rule: _TopJ, picked: Float[Array, "B M D"], head: Head, of_targets: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """The summed loss, and the rule's constant (which has no gradient), in nats."""
    loss, constant, _ = _in_chunks(rule, False, picked, head, of_targets)
    return loss, constant


def _forward(rule, picked, head, of_targets):
    loss, constant, d_picked = _in_chunks(rule, True, picked, head, of_targets)
    return (loss, constant), d_picked


def _backward(rule, d_picked, gradients):
    d_loss, _ = gradients
    return (d_picked * d_loss).astype(d_picked.dtype), None, None


_summed.defvjp(_forward, _backward)


def _in_chunks(
    rule: _TopJ,
    with_gradient: bool,
    picked: Float[Array, "B M D"],
    head: Head,
    of_targets: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, Float[Array, "B M D"]]:
    """Loss and constant of all rows, and the loss's gradient of `picked` if it is wanted.

    Each device takes its rows and its part of the vocabulary; `of_targets` begin with [B, M].
    """

    def local(picked, head, of_targets):
        rows = len(picked)
        chunks = LogitChunks(rows * picked.shape[1], head)

        def one(sums: Any, chunk: Any) -> Any:
            h, targets = chunk
            logits, pull = jax.vjp(head.logits, h)
            loss, constant, d_logits = rule(Logits(logits, chunks.first), *targets)
            sums = (sums[0] + loss, sums[1] + constant)
            if not with_gradient:
                return sums, None
            [d_h] = pull(d_logits)
            return sums, jax.lax.psum(d_h, MODEL)

        zero = jnp.zeros((), jnp.float32)
        cut = (chunks.cut(picked), tuple(map(chunks.cut, of_targets)))
        sums, d_h = jax.lax.scan(one, (zero, zero), cut)
        loss, constant = (jax.lax.psum(x, DATA) for x in sums)
        return loss, constant, chunks.join(d_h, rows) if with_gradient else picked  # not looked at

    rows = tuple(P(DATA, *[None] * (x.ndim - 1)) for x in of_targets)
    run: Callable = jax.shard_map(
        local,
        in_specs=(ACT_BTD, head.specs, rows),
        out_specs=(P(), P(), ACT_BTD),
        check_vma=False,
    )
    return run(picked, head, of_targets)
