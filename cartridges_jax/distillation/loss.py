"""Distillation losses: `[B, T, V]` never exists, neither as logits nor as their gradient.

`distillation_loss` compares the student with the teacher's top J log-probabilities, as they are
stored: for each row a sum over its target positions of a term that a rule (`_TopJ`) defines with
its gradient.

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
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, TOKENS_BT

TopJ = Literal["top_j", "renormalised", "tail"]


class Targets(NamedTuple):
    """What the teacher said at M positions of each row; unused places have weight 0."""

    index: Int[Array, "B M"]  # position in the row whose *next* token is predicted
    top_ids: Int[Array, "B M J"]
    top_logprobs: Float[Array, "B M J"]
    weight: Float[Array, "B M"]


class LossSums(NamedTuple):
    """Sums over each row's target positions: of loss and divergence, in nats; and their number.

    The divergence is the loss plus the teacher's sum of p log p over what the loss counts; without
    the rest of the vocabulary ("top_j") a good student's may be a little below 0.
    """

    loss: Float[Array, "B"]
    kl: Float[Array, "B"]
    count: Float[Array, "B"]


def distillation_loss(
    model: Transformer, hidden: Float[Array, "B T D"], targets: Targets, kind: TopJ = "top_j"
) -> LossSums:
    """Sums the loss over the target positions of each row.

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
    picked = gather_positions(hidden, targets.index)
    taught = (targets.top_ids, targets.top_logprobs)
    found: Any = _terms(_TopJ(kind), picked, model.head, taught)
    loss, constant = (jnp.sum(targets.weight * x, axis=1) for x in found)
    # The gradients of loss and KL with respect to the student are the same.
    return LossSums(loss, loss + constant, jnp.sum(targets.weight, axis=1))


# ---- rules: the loss of a chunk, a constant, and the gradient of the logits
#
# A rule takes a chunk's logits of one device's words, and what the teacher said at each position.
# It returns each position's loss and a constant of it, and the loss's gradient of the logits.


@dataclasses.dataclass(frozen=True)
class _TopJ:
    """See `distillation_loss`; the constant is the teacher's sum of p log p."""

    kind: TopJ

    def __call__(
        self,
        logits: Logits,
        ids: Int[Array, "m J"],
        t: Float[Array, "m J"],
    ) -> tuple[Float[Array, "m"], Float[Array, "m"], Float[Array, "m V"]]:
        V = logits.values.shape[1]
        logq = logits.log_softmax()
        own = (ids >= logits.first) & (ids < logits.first + V)
        at = jnp.where(own, ids - logits.first, 0)
        found = jnp.where(own, jnp.take_along_axis(logq, at, axis=-1), 0.0)
        student = jax.lax.psum(found, MODEL)  # [m, J]
        if self.kind == "renormalised":
            t = jax.nn.log_softmax(t)
        p = jnp.exp(t)
        # A teacher may rule a token out: 0 log 0 is 0.
        loss, constant = -jnp.sum(p * student, -1), jnp.sum(jnp.where(p > 0, p * t, 0.0), -1)
        # d loss / d logits = q * sum_j p_j, less p_j at the teacher's ids
        mass, q = p.sum(-1, keepdims=True), jnp.exp(logq)
        row = jnp.arange(len(ids))[:, None]
        gradient = q * mass
        if self.kind == "tail":
            # The student's rest is summed without the J, as 1 - sum_j q(i_j) would cancel.
            outside = q.at[row, at].multiply(jnp.where(own, 0.0, 1.0))
            rest_q = jnp.maximum(over_vocabulary(outside), jnp.finfo(jnp.float32).tiny)
            rest = jnp.clip(1 - mass, 0.0, 1.0)
            loss -= jnp.sum(rest * jnp.log(rest_q), -1)
            constant += jnp.sum(jax.scipy.special.xlogy(rest, rest), -1)
            gradient += q * rest - rest * (outside / rest_q)
        return loss, constant, gradient.at[row, at].add(jnp.where(own, -p, 0.0))


# ---- chunk by chunk, with the gradient made on the way


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _terms(
    rule: _TopJ, picked: Float[Array, "B M D"], head: Head, taught: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """Each position's loss, and the rule's constant (which has no gradient) [B, M], in nats."""
    loss, constant, _ = _in_chunks(rule, False, picked, head, taught)
    return loss, constant


def _forward(rule, picked, head, taught):
    loss, constant, d_picked = _in_chunks(rule, True, picked, head, taught)
    return (loss, constant), d_picked


def _backward(rule, d_picked, gradients):
    d_loss, _ = gradients
    return (d_picked * d_loss[..., None]).astype(d_picked.dtype), None, None


_terms.defvjp(_forward, _backward)


def _in_chunks(
    rule: _TopJ,
    with_gradient: bool,
    picked: Float[Array, "B M D"],
    head: Head,
    taught: tuple[jax.Array, ...],
) -> tuple[Float[Array, "B M"], Float[Array, "B M"], Float[Array, "B M D"]]:
    """Loss and constant of each position, and the loss's gradient of `picked` if it is wanted.

    Each device takes its rows and its part of the vocabulary; what was taught begins with [B, M].
    """

    def local(picked, head, taught):
        rows = len(picked)
        chunks = LogitChunks(rows * picked.shape[1], head)

        def one(chunk: Any) -> Any:
            h, targets = chunk
            logits, pull = jax.vjp(head.logits, h)
            loss, constant, d_logits = rule(Logits(logits, chunks.first), *targets)
            if not with_gradient:
                return loss, constant
            [d_h] = pull(d_logits)
            return loss, constant, jax.lax.psum(d_h, MODEL)

        found = jax.lax.map(one, (chunks.cut(picked), tuple(map(chunks.cut, taught))))
        joined = tuple(chunks.join(x, rows) for x in found)
        return joined if with_gradient else (*joined, picked)  # which nobody looks at

    rows = tuple(P(DATA, *[None] * (x.ndim - 1)) for x in taught)
    run: Callable = jax.shard_map(
        local,
        in_specs=(ACT_BTD, head.specs, rows),
        out_specs=(TOKENS_BT, TOKENS_BT, ACT_BTD),
        check_vma=False,
    )
    return run(picked, head, taught)
