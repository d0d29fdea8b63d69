"""One training step: the loss of packed rows behind a prefix, its gradient, Adam.

The base is an argument that is never differentiated: gradients and moments have the size of the
prefix, and are float32 whatever the base's dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.loss import LossSums, Targets, TopJ, distillation_loss
from cartridges_jax.models.transformer import Prefix, Transformer
from cartridges_jax.sharding import DATA, place

ADAM_B1, ADAM_B2 = 0.9, 0.95
PARTS = P(None, DATA)  # of a batch: parts, and their rows


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up that is over zero at step 0, then linear decay up to `num_steps`."""
    decay = max(1, config.num_steps - config.warmup_steps)

    def rate(step):
        rise = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        fall = jnp.clip((step - config.warmup_steps) / decay, 0.0, 1.0)
        return config.learning_rate * rise * (1 - (1 - config.final_rate_share) * fall)

    return rate


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping and Adam, moments in float32."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(learning_rate(config), b1=ADAM_B1, b2=ADAM_B2, mu_dtype=jnp.float32),
    )


def prefix_loss(
    prefix: Prefix, base: Transformer, batch: dict[str, jax.Array], kind: TopJ = "top_j"
) -> LossSums:
    """The loss sums of packed rows (see `dataset.packed_row`) read after a prefix.

    Args:
      prefix: in the base's dtype, or in float32 where its gradient is wanted.
      base: the frozen model.
      batch: arrays [B, T], [B, M] and [B, M, J].
      kind: see `distillation_loss`.
    """
    positions = batch["positions"] + prefix.next_position
    hidden, _ = base(batch["token_ids"], positions, batch["segment_start"], prefix=prefix)
    targets = Targets(
        batch["target_index"], batch["top_ids"], batch["top_logprobs"], batch["target_weight"]
    )
    return distillation_loss(base, hidden, targets, kind)


def make_train_step(
    graphdef: Any, optimizer: optax.GradientTransformation, kind: TopJ = "top_j"
) -> Any:
    """Returns the jitted step: trainable, opt_state, frozen, base, batch to new state and means.

    The batch is as `place_batch` makes it. Gradients of its parts are added up in float32, each
    the share of all the step's targets: activations are those of one part.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(trainable, opt_state, frozen, base, batch):
        count = jnp.sum(batch["target_weight"])  # packed rows always hold targets

        def share_of_loss(trainable, part):
            cartridge = nnx.merge(graphdef, trainable, frozen)
            # In float32: attention casts it, and its gradient is summed over devices before a cast.
            sums = prefix_loss(cartridge.prefix(jnp.float32), base, part, kind)
            return sums.loss / count, sums

        gradient = jax.grad(share_of_loss, has_aux=True)
        if batch["token_ids"].shape[0] == 1:
            grads, sums = gradient(trainable, jax.tree.map(lambda x: x[0], batch))
        else:
            zeros = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))
            (grads, sums), _ = jax.lax.scan(
                lambda total, part: (jax.tree.map(jnp.add, total, gradient(trainable, part)), None),
                (jax.tree.map(jnp.zeros_like, trainable), zeros),
                batch,
            )
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        means = {
            "loss": sums.loss / count,
            "kl": sums.kl / count,
            "grad_norm": optax.tree.norm(grads),
        }
        return optax.apply_updates(trainable, updates), opt_state, means

    return train_step


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray], rows_at_once: int) -> dict[str, Any]:
    """Puts rows [B, ...] on a mesh as parts [B / n, n, ...] that are computed one after another.

    n is `rows_at_once`, or 0 for all of them; a part's rows are shared by the devices of "data".
    """
    rows = len(batch["token_ids"])
    shape = (-1, rows_at_once or rows)
    return {name: place(mesh, x.reshape(*shape, *x.shape[1:]), PARTS) for name, x in batch.items()}
