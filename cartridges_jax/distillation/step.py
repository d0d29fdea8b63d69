"""One training step: the loss of packed rows behind a prefix, its gradient, Adam.

The base is an argument that is never differentiated: gradients and moments have the size of the
prefix, and are float32 whatever the base's dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.loss import LossSums, Targets, TopJ, distillation_loss
from cartridges_jax.models.transformer import Prefix, Transformer

ADAM_B1, ADAM_B2 = 0.9, 0.95


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
    """Returns the jitted step: trainable, opt_state, frozen, base, batch to new state and means."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(trainable, opt_state, frozen, base, batch):
        def mean_loss(trainable):
            cartridge = nnx.merge(graphdef, trainable, frozen)
            # In float32: attention casts it, and its gradient is summed over devices before a cast.
            sums = prefix_loss(cartridge.prefix(jnp.float32), base, batch, kind)
            return sums.loss / sums.count, sums  # packed rows always hold targets

        grads, sums = jax.grad(mean_loss, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        means = {
            "loss": sums.loss / sums.count,
            "kl": sums.kl / sums.count,
            "grad_norm": optax.tree.norm(grads),
        }
        return optax.apply_updates(trainable, updates), opt_state, means

    return train_step
