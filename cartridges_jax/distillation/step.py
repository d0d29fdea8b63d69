"""One training step of C cartridges at once: their rows' losses, gradients, clipping and Adam.

The base is an argument that is never differentiated: gradients and moments have the size of the
slots, and are float32 whatever the base's dtype. Rows of all cartridges go through the model
together; attention alone keeps them apart, each group of rows behind its own prefix, so a gradient
is summed over the rows of its cartridge and no prefix is repeated. One cartridge is shared by all
devices, which share its rows; several are split over "data" with their rows, slots and moments, and
nothing of them crosses devices.

Memory of a device: 16 bytes for each number of its cartridges (slots, gradient, two moments), and
activations of the rows that are computed at a time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cartridges_jax.cartridge import Cartridge, FrozenSlot, TrainableSlot
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.loss import LossSums, Targets, TopJ, distillation_loss
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.transformer import Prefix, Transformer
from cartridges_jax.sharding import DATA, head_axis, place, without_data

ADAM_B1, ADAM_B2 = 0.9, 0.95
PARTS = P(None, DATA)  # of a batch: parts, and their rows


class Schedule(NamedTuple):
    """What a configuration says of the optimiser, as numbers; [C] for the cartridges of a step."""

    learning_rate: Any
    final_rate_share: Any
    warmup_steps: Any
    num_steps: Any
    max_grad_norm: Any

    @classmethod
    def of(cls, config: TrainConfig) -> "Schedule":
        return cls(*(np.float32(getattr(config, name)) for name in cls._fields))


class Learning(NamedTuple):
    """What a step changes: trainable slots [L, p - f, K, H], and the state of the optimiser."""

    trainable: Any
    opt_state: Any


class Given(NamedTuple):
    """What it does not: frozen slots [L, f, K, H], live slots, position behind them, schedule."""

    frozen: Any
    length: Any
    next_position: Any
    schedule: Schedule


class Places(NamedTuple):
    """C cartridges in training: every array has an axis C behind L, or in front where L is not."""

    learning: Learning
    given: Given


def learning_rate(schedule: Schedule, step: Any) -> jax.Array:
    """Linear warm-up that is over zero at step 0, then linear decay up to `num_steps`."""
    decay = jnp.maximum(1, schedule.num_steps - schedule.warmup_steps)
    rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(1, schedule.warmup_steps))
    fall = jnp.clip((step - schedule.warmup_steps) / decay, 0.0, 1.0)
    return schedule.learning_rate * rise * (1 - (1 - schedule.final_rate_share) * fall)


def make_optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """Clipping and Adam, moments in float32."""
    return optax.chain(
        optax.clip_by_global_norm(schedule.max_grad_norm),
        optax.adam(
            functools.partial(learning_rate, schedule), b1=ADAM_B1, b2=ADAM_B2, mu_dtype=jnp.float32
        ),
    )


def begun(cartridge: Cartridge, config: TrainConfig) -> Places:
    """A cartridge in training, as it begins: its arrays without the axis C."""
    _, trainable, frozen = nnx.split(cartridge, TrainableSlot, FrozenSlot)
    schedule = Schedule.of(config)
    learning = Learning(trainable, make_optimizer(schedule).init(trainable))
    numbers = (np.int32(cartridge.num_slots), np.int32(cartridge.next_position))
    return Places(learning, Given(frozen, *numbers, schedule))


def abstract_places(config: ModelConfig, training: TrainConfig, count: int, mesh: Mesh) -> Places:
    """The shapes of `count` cartridges in training, and where they live: for compiling ahead."""
    L, K, H, p = config.num_layers, config.num_kv_heads, config.head_dim, training.num_slots
    data = DATA if count > 1 else None

    def one() -> Places:
        slots = jnp.zeros((L, p, K, H))
        return begun(Cartridge(slots, slots, num_frozen=training.num_frozen), training)

    def with_count(x: Any) -> Any:
        if not x.ndim:
            spec, shape = P(data), (count,)
        else:
            spec, shape = P(None, data, None, head_axis(K), None), (L, count, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(with_count, jax.eval_shape(one))


def abstract_batch(training: TrainConfig, count: int, top: int, mesh: Mesh) -> dict[str, Any]:
    """The shapes of a batch as `place_batch` makes it, with `top` entries of the teacher."""
    rows, shape = training.rows_per_step, training.row_shape()
    n, T, M = training.rows_at_once or rows, shape.num_tokens, shape.num_targets
    sizes = {
        "token_ids": ((T,), jnp.int32),
        "positions": ((T,), jnp.int32),
        "segment_start": ((T,), jnp.int32),
        "target_index": ((M,), jnp.int32),
        "target_weight": ((M,), jnp.float32),
        "top_ids": ((M, top), jnp.int32),
        "top_logprobs": ((M, top), jnp.float32),
    }
    parts = (rows // n, count * n)
    return {
        name: jax.ShapeDtypeStruct((*parts, *of_row), kind, sharding=NamedSharding(mesh, PARTS))
        for name, (of_row, kind) in sizes.items()
    }


def graph_of(training: TrainConfig) -> Any:
    """The structure of a cartridge, in which the arrays of `Places` belong."""
    fresh = functools.partial(Cartridge, num_frozen=training.num_frozen)
    slots = jax.ShapeDtypeStruct((1, training.num_slots, 1, 1), jnp.float32)
    return nnx.split(nnx.eval_shape(fresh, slots, slots), TrainableSlot, FrozenSlot)[0]


# ---- into and out of places


def _axis(x: Any) -> int:
    """Where C is."""
    return 1 if x.ndim > 1 else 0


def no_cartridges(one: Places, count: int, num_slots: int) -> Places:
    """`count` places without a cartridge, of at most `num_slots`; `one` is like those to come.

    An empty place takes part in every step and stays zero.
    """
    data = DATA if count > 1 else None
    frozen = next(iter(jax.tree.leaves(one.given.frozen))).shape[1]

    def zeros(x: Any, slots: int) -> jax.Array:
        if x.ndim == 0:
            return jnp.zeros(count, x.dtype, out_sharding=P(data))
        L, _, K, H = x.shape
        heads = jax.typeof(x).sharding.spec[2]
        spec = P(None, data, None, heads, None)
        return jnp.zeros((L, count, slots, K, H), x.dtype, out_sharding=spec)

    learning = jax.tree.map(lambda x: zeros(jnp.asarray(x), num_slots - frozen), one.learning)
    return Places(learning, jax.tree.map(lambda x: zeros(jnp.asarray(x), frozen), one.given))


@functools.partial(jax.jit, donate_argnums=0)
def put(places: Places, index: jax.Array, one: Places) -> Places:
    """Puts a cartridge into a place; its slots are padded to the place's, which nobody sees."""

    def at(x: jax.Array, new: jax.Array) -> jax.Array:
        axis = _axis(x)
        new = jnp.expand_dims(new, axis)
        if x.ndim > 1:
            new = jnp.pad(
                new, [(0, x.shape[2] - new.shape[2]) if i == 2 else (0, 0) for i in range(5)]
            )
        return jnp.where(_is_place(x, index), new, x)

    return jax.tree.map(at, places, one)


@functools.partial(jax.jit, static_argnames="num_slots")
def taken(learning: Learning, index: jax.Array, num_slots: int) -> Learning:
    """One place's part of what a step changes, with its first trainable slots."""

    def of(x: jax.Array) -> jax.Array:
        mine = jnp.where(_is_place(x, index), x, jnp.zeros((), x.dtype)).sum(
            _axis(x), dtype=x.dtype
        )
        return mine[:, :num_slots] if x.ndim > 1 else mine

    return jax.tree.map(of, learning)


def _is_place(x: jax.Array, index: jax.Array) -> jax.Array:
    spec = jax.typeof(x).sharding.spec[_axis(x)]
    numbers = jnp.arange(x.shape[_axis(x)], out_sharding=P(spec))
    is_it = numbers == index
    return is_it[None, :, None, None, None] if x.ndim > 1 else is_it


# ---- the step


def prefix_loss(
    prefix: Prefix,
    base: Transformer,
    batch: dict[str, jax.Array],
    kind: TopJ = "top_j",
    save_products: bool | None = None,
) -> LossSums:
    """The loss sums [B] of packed rows (see `dataset.packed_row`) read after a prefix.

    Args:
      prefix: in the base's dtype, or in float32 where its gradient is wanted; of C cartridges, each
        for a group of B / C rows, or of one.
      base: the frozen model.
      batch: arrays [B, T], [B, M] and [B, M, J].
      kind: see `distillation_loss`.
      save_products: see `Transformer.__call__`.
    """
    positions = batch["positions"]
    first = prefix.next_position
    if first.ndim and len(first) > 1:
        first = jnp.repeat(first, len(positions) // len(first), out_sharding=P(DATA))[:, None]
    positions = positions + first
    hidden, _ = base(
        batch["token_ids"],
        positions,
        batch["segment_start"],
        prefix=prefix,
        save_products=save_products,
    )
    targets = Targets(
        batch["target_index"], batch["top_ids"], batch["top_logprobs"], batch["target_weight"]
    )
    return distillation_loss(base, hidden, targets, kind)


def make_train_step(
    graphdef: Any,
    kind: TopJ = "top_j",
    save_products: bool | None = None,
    one_by_one: bool = False,
) -> Any:
    """Returns the jitted step: learning, given, base, batch to what was learned, and figures [C].

    The batch is as `place_batch` makes it. Gradients of its parts are added up in float32, each
    the share of all the step's targets: activations are those of one part.

    With `one_by_one` cartridges take turns inside of the step, each with the products that it would
    have alone: the same bits, and the activations of one. For one device, where longer products are
    no faster: a CPU.
    """

    def gradients(trainable: Any, given: Given, base: Transformer, batch: dict[str, jax.Array]):
        """Gradients, loss sums and numbers of targets of the cartridges whose rows these are."""
        C = len(given.length)
        count = jnp.maximum(_of_each(_all_parts(batch["target_weight"]).sum(1), C), 1.0)

        def share_of_loss(trainable, part):
            cartridges = nnx.merge(graphdef, trainable, given.frozen)
            # In float32: attention casts it, and its gradient is summed over devices before a cast.
            prefix = cartridges.prefix(jnp.float32)
            prefix = prefix._replace(length=given.length, next_position=given.next_position)
            of_rows = prefix_loss(prefix, base, part, kind, save_products)
            sums = LossSums(*(_of_each(x, C) for x in of_rows))
            return jnp.sum(sums.loss / count), sums

        gradient = jax.grad(share_of_loss, has_aux=True)
        if batch["token_ids"].shape[0] == 1:
            return *gradient(trainable, jax.tree.map(lambda x: x[0], batch)), count
        nothing = LossSums(*(jnp.zeros_like(count) for _ in LossSums._fields))
        zeros = jax.tree.map(jnp.zeros_like, trainable)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(trainable, part)), None

        return *jax.lax.scan(add, (zeros, nothing), batch)[0], count

    def in_turn(trainable: Any, given: Given, base: Transformer, batch: dict[str, jax.Array]):
        """The same, one cartridge after the other."""
        C = len(given.length)

        def own(x: jax.Array, place: jax.Array) -> jax.Array:
            spec = without_data(jax.typeof(x).sharding.spec)
            part = jax.lax.dynamic_slice_in_dim(x, place, 1, _axis(x))
            return jax.sharding.reshard(part, spec)

        def one(place: jax.Array) -> Any:
            of_one = [jax.tree.map(lambda x: own(x, place), tree) for tree in (trainable, given)]
            rows = {
                name: jax.lax.dynamic_slice_in_dim(x, place * x.shape[1] // C, x.shape[1] // C, 1)
                for name, x in batch.items()
            }
            found = gradients(of_one[0], of_one[1], base, rows)
            return jax.tree.map(lambda x: x.squeeze(_axis(x)), found)

        grads, sums, count = jax.lax.map(one, jnp.arange(C))
        grads = jax.tree.map(
            lambda g, x: jax.sharding.reshard(jnp.moveaxis(g, 0, 1), jax.typeof(x).sharding.spec),
            grads,
            trainable,
        )
        return grads, sums, count

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        learning: Learning, given: Given, base: Transformer, batch: dict[str, jax.Array]
    ):
        run = in_turn if one_by_one else gradients
        grads, sums, count = run(learning.trainable, given, base, batch)
        learning, norms = _learned(learning, grads, given.schedule)
        figures = {"loss": sums.loss / count, "kl": sums.kl / count, "grad_norm": norms}
        return learning, jax.tree.map(lambda x: jax.sharding.reshard(x, P(None)), figures)

    return train_step


def _learned(learning: Learning, grads: Any, schedule: Schedule) -> tuple[Learning, jax.Array]:
    """Each cartridge's own clipping and Adam; also the norms of the gradients [C]."""

    def one(learning: Learning, grads: Any, schedule: Schedule) -> tuple[Learning, jax.Array]:
        trainable, opt_state = learning
        updates, opt_state = make_optimizer(schedule).update(grads, opt_state, trainable)
        norm = optax.tree.norm(grads)
        return Learning(optax.apply_updates(trainable, updates), opt_state), norm

    axes = jax.tree.map(_axis, learning)
    grad_axes = jax.tree.map(_axis, grads)
    return jax.vmap(one, in_axes=(axes, grad_axes, 0), out_axes=(axes, 0))(
        learning, grads, schedule
    )


def _all_parts(x: jax.Array) -> jax.Array:
    """What belongs to rows [parts, B, ...], the parts side by side: [B, parts * ...]."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def _of_each(x: jax.Array, count: int) -> jax.Array:
    """Sums [B] over the rows of each of C cartridges."""
    if count == 1:
        return jnp.sum(x)[None]
    return x.reshape(count, -1, out_sharding=P(DATA, None)).sum(1)


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Puts rows [parts, C * n, ...] on a mesh: n of each of C cartridges, computed part by part.

    A part's rows are shared by the devices of "data".
    """
    return {name: place(mesh, x, PARTS) for name, x in batch.items()}
