"""Distillation losses: `[B, T, V]` never exists, neither as logits nor as their gradient.

`distillation_loss` compares the student with the teacher's top J log-probabilities, as they are
stored; `full_teacher_loss` with a teacher whose hidden states are at hand. Each is a sum over
target positions of a term that a rule (`_TopJ`, `_FullTeacher`) defines together with its gradient.

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

from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, TOKENS_BT, on_tpu

CHUNK = 128  # most target positions of a device whose logits exist at a time
# On TPU, bytes of these: the head is read anew for each chunk, so larger ones keep the products
# busier, but beyond this they leave VMEM (at 128k words over 4 chips, 512 take 160 MiB of HBM).
LOGITS_ON_TPU = 24 * 2**20

TopJ = Literal["top_j", "renormalised", "tail"]
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class Targets(NamedTuple):
    """What the teacher said at M positions of each row; unused places have weight 0."""

    index: Int[Array, "B M"]  # position in the row whose *next* token is predicted
    top_ids: Int[Array, "B M J"]
    top_logprobs: Float[Array, "B M J"]
    weight: Float[Array, "B M"]


class LossSums(NamedTuple):
    """Sums over target positions: of the loss, of the divergence, and their number.

    The divergence is the loss plus the teacher's sum of p log p over what the loss counts; without
    the rest of the vocabulary ("top_j") a good student's may be a little below 0.
    """

    loss: jax.Array
    kl: jax.Array
    count: jax.Array


def gather_positions(
    hidden: Float[Array, "B T D"], index: Int[Array, "B M"]
) -> Float[Array, "B M D"]:
    """Picks positions of each row, on the device that holds the row."""

    def local(hidden, index):
        return jnp.take_along_axis(hidden, index[..., None], axis=1)

    return jax.shard_map(local, in_specs=(ACT_BTD, TOKENS_BT), out_specs=ACT_BTD)(hidden, index)


def distillation_loss(
    model: Transformer, hidden: Float[Array, "B T D"], targets: Targets, kind: TopJ = "top_j"
) -> LossSums:
    """Sums the loss over all target positions.

    With the teacher's top-J log-probabilities t_j of the ids i_j, p_j = exp(t_j) and q the
    student's distribution over the full vocabulary:

    * "top_j": -sum_j p_j log q(i_j), the cross entropy of the paper's runs (arXiv 2506.06266,
      section 4.2), not renormalised and without the rest. With J = 1 and t = 0 it is the
      next-token loss.
    * "renormalised": the same with p_j / sum_k p_k: the teacher is taken to say nothing else.
    * "tail": "top_j", and the rest of the vocabulary as one more outcome:
      -(1 - sum_j p_j) log(1 - sum_j q(i_j)); it holds the student's mass outside the J down.

    It is differentiable with respect to `hidden` alone: the base is frozen, and the gradient of its
    LM head is not computed (it comes out as zero). Ids of a position must differ.

    Args:
      model: gives the LM head.
      hidden: normed hidden states of the student.
      targets: what the teacher said, and where.
      kind: which of the three.

    Raises:
      ValueError: if `kind` is none of them.
    """
    _check_kind(kind, TopJ)
    of_targets = (targets.top_ids, targets.top_logprobs, targets.weight)
    picked = gather_positions(hidden, targets.index)
    total, constant = _sum(_TopJ(kind), model, picked, of_targets)
    # The gradients of loss and KL with respect to the student are the same.
    return LossSums(total, total + constant, jnp.sum(targets.weight))


def full_teacher_loss(
    model: Transformer,
    hidden: Float[Array, "B T D"],
    teacher: Float[Array, "B M D"],
    index: Int[Array, "B M"],
    weight: Float[Array, "B M"],
    *,
    kind: Divergence = "forward_kl",
    temperature: float = 1.0,
) -> LossSums:
    """Sums a divergence between the whole distributions of teacher and student.

    P and Q are softmaxes of teacher's and student's logits, both divided by the temperature:

    * "forward_kl": sum P (log P - log Q), which covers all that the teacher says.
    * "reverse_kl": sum Q (log Q - log P), which seeks a mode (MiniLLM, arXiv 2306.08543).
    * "jensen_shannon": the mean of KL(P | M) and KL(Q | M), M = (P + Q) / 2: bounded by log 2
      (generalised in GKD, arXiv 2306.13649, there with beta = 1/2).

    All are multiplied by the square of the temperature, so that gradients keep their size (Hinton
    et al., arXiv 1503.02531). The head's product runs three times a position, for
    `distillation_loss` twice. It is differentiable with respect to `hidden` alone.

    Args:
      model: gives the LM head, of both.
      hidden: normed hidden states of the student.
      teacher: those of the teacher at the target positions.
      index: position in the row of each target.
      weight: of each target; 0 in unused places.
      kind: which divergence.
      temperature: above 0.

    Raises:
      ValueError: if `kind` is none of them, or the temperature not above 0.
    """
    _check_kind(kind, Divergence)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    picked = gather_positions(hidden, index)
    rule = _FullTeacher(kind, temperature)
    total, constant = _sum(rule, model, picked, (teacher, weight))
    return LossSums(total, total + constant, jnp.sum(weight))


def _check_kind(kind: str, kinds: Any) -> None:
    if kind not in get_args(kinds):
        raise ValueError(f"kind must be one of {', '.join(get_args(kinds))}, got {kind!r}")


def _sum(rule: Any, model: Transformer, picked: jax.Array, of_targets: tuple) -> Any:
    head = model.embedding if model.lm_head is None else model.lm_head
    scale = None if head.scale is None else head.scale[...]
    return _summed(rule, picked, head.weight[...], scale, of_targets)


# ---- rules: the loss of a chunk, a constant, and the gradient of the logits


class _Logits(NamedTuple):
    """One device's part of a chunk's logits: the ids from `first` on."""

    values: Float[Array, "M V"]
    first: jax.Array

    def log_softmax(self) -> Float[Array, "M V"]:
        """Log-probabilities over the whole vocabulary, of this part's ids."""
        top = jax.lax.pmax(self.values.max(-1), MODEL)[:, None]
        return self.values - top - jnp.log(_over_vocabulary(jnp.exp(self.values - top)))


def _over_vocabulary(x: Float[Array, "M V"]) -> Float[Array, "M 1"]:
    return jax.lax.psum(x.sum(-1, keepdims=True), MODEL)


@dataclasses.dataclass(frozen=True)
class _TopJ:
    """See `distillation_loss`; the constant is the teacher's sum of p log p."""

    kind: TopJ

    def __call__(self, logits: _Logits, _, ids, t, weight):
        V = logits.values.shape[1]
        logq = logits.log_softmax()
        own = (ids >= logits.first) & (ids < logits.first + V)
        at = jnp.where(own, ids - logits.first, 0)
        found = jnp.where(own, jnp.take_along_axis(logq, at, axis=-1), 0.0)
        student = jax.lax.psum(found, MODEL)  # [m, J]
        if self.kind == "renormalised":
            t = jax.nn.log_softmax(t)
        p = jnp.exp(t) * weight[:, None]
        loss, constant = -jnp.sum(p * student), jnp.sum(p * t)
        # d loss / d logits = q * sum_j p_j, less p_j at the teacher's ids
        mass, q = p.sum(-1, keepdims=True), jnp.exp(logq)
        row = jnp.arange(len(ids))[:, None]
        gradient = q * mass
        if self.kind == "tail":
            # The student's rest is summed without the J, as 1 - sum_j q(i_j) would cancel.
            outside = q.at[row, at].multiply(jnp.where(own, 0.0, 1.0))
            rest_q = jnp.maximum(_over_vocabulary(outside), jnp.finfo(jnp.float32).tiny)
            rest_p = jnp.clip(1 - jnp.exp(t).sum(-1, keepdims=True), 0.0, 1.0)
            rest = rest_p * weight[:, None]
            loss -= jnp.sum(rest * jnp.log(rest_q))
            constant += jnp.sum(jax.scipy.special.xlogy(rest, rest_p))
            gradient += q * rest - rest * (outside / rest_q)
        return loss, constant, gradient.at[row, at].add(jnp.where(own, -p, 0.0))


@dataclasses.dataclass(frozen=True)
class _FullTeacher:
    """See `full_teacher_loss`; the constant is zero."""

    kind: Divergence
    temperature: float

    def __call__(self, logits: _Logits, logits_of: Callable[[jax.Array], jax.Array], teacher, w):
        def softened(values: jax.Array) -> jax.Array:
            return _Logits(values / self.temperature, logits.first).log_softmax()

        logp, logq = softened(logits_of(teacher)), softened(logits.values)
        p, q = jnp.exp(logp), jnp.exp(logq)
        match self.kind:
            case "forward_kl":
                each, gradient = p * (logp - logq), q - p
            case "reverse_kl":
                ratio = logq - logp
                each, gradient = q * ratio, q * (ratio - _over_vocabulary(q * ratio))
            case "jensen_shannon":
                logm = jnp.logaddexp(logp, logq) - jnp.log(2.0)
                ratio = 0.5 * (logq - logm)
                each = 0.5 * p * (logp - logm) + q * ratio
                gradient = q * (ratio - _over_vocabulary(q * ratio))
        value = jnp.sum(_over_vocabulary(each)[:, 0] * w) * self.temperature**2
        return value, jnp.zeros(()), gradient * w[:, None] * self.temperature


# ---- the sum over chunks, with the gradient made on the way


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(rule, picked, head, scale, of_targets):
    """The summed loss, and the rule's constant (which has no gradient)."""
    loss, constant, _ = _in_chunks(rule, False, picked, head, scale, of_targets)
    return loss, constant


def _forward(rule, picked, head, scale, of_targets):
    loss, constant, d_picked = _in_chunks(rule, True, picked, head, scale, of_targets)
    return (loss, constant), d_picked


def _backward(rule, d_picked, gradients):
    d_loss, _ = gradients
    return (d_picked * d_loss).astype(d_picked.dtype), None, None, None


_summed.defvjp(_forward, _backward)


def _in_chunks(rule: Any, with_gradient: bool, picked, head, scale, of_targets):
    """Runs `_device_sums` where the rows and the parts of the vocabulary are."""

    def local(picked, head, scale, of_targets):
        loss, constant, d_picked = _device_sums(
            rule, with_gradient, picked, head, scale, of_targets
        )
        return jax.lax.psum(loss, DATA), jax.lax.psum(constant, DATA), d_picked

    rows = tuple(P(DATA, *[None] * (x.ndim - 1)) for x in of_targets)
    return jax.shard_map(
        local,
        in_specs=(ACT_BTD, P(MODEL, None), None if scale is None else P(MODEL), rows),
        out_specs=(P(), P(), ACT_BTD),
        check_vma=False,
    )(picked, head, scale, of_targets)


def _device_sums(rule: Any, with_gradient: bool, picked, head, scale, of_targets):
    """Loss and constant of one device's rows, and the loss's gradient of `picked`.

    `head` is this device's part of the vocabulary, [V / devices, D].
    """
    B, M, D = picked.shape
    first = jax.lax.axis_index(MODEL) * head.shape[0]
    chunk = max(8, LOGITS_ON_TPU // (4 * head.shape[0])) if on_tpu() else CHUNK
    count = max(1, -(-B * M // chunk))
    size = -(-B * M // (8 * count)) * 8  # even chunks of whole sublanes: little padding

    def chunks(x: jax.Array) -> jax.Array:
        x = x.reshape(B * M, *x.shape[2:])
        x = jnp.pad(x, [(0, count * size - B * M)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(count, size, *x.shape[1:])

    def logits_of(h: jax.Array) -> jax.Array:
        out = jnp.einsum("MD,VD->MV", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
        return out if scale is None else out * scale

    def one(sums: Any, chunk: Any) -> Any:
        h, targets = chunk
        logits, pull = jax.vjp(logits_of, h)
        loss, constant, d_logits = rule(_Logits(logits, first), logits_of, *targets)
        sums = (sums[0] + loss, sums[1] + constant)
        if not with_gradient:
            return sums, None
        [d_h] = pull(d_logits)
        return sums, jax.lax.psum(d_h, MODEL)

    zero = jnp.zeros((), jnp.float32)
    (loss, constant), d_h = jax.lax.scan(
        one, (zero, zero), (chunks(picked), tuple(map(chunks, of_targets)))
    )
    if not with_gradient:
        return loss, constant, picked  # not looked at
    return loss, constant, d_h.reshape(-1, D)[: B * M].reshape(B, M, D)
