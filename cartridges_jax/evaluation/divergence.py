"""Without known answers: how far an arm is from the teacher that reads the chunk in its context.

Over the answer tokens of held-out conversations: the KL divergence to the in-context teacher (over
the teacher's top 20), and the log-perplexity (mean negative log-likelihood, nats a token) of the
answers that the teacher gave.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cartridges_jax.distillation.dataset import unpacked_rows
from cartridges_jax.distillation.step import prefix_loss
from cartridges_jax.distillation.targets import decode_record
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.transformer import Prefix
from cartridges_jax.sharding import DATA, place

BATCH_STEP = 16  # rows that run together


@jax.jit
def _sums(model: Any, prefix: Prefix, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    soft = prefix_loss(prefix, model, batch)
    next_ids = jnp.take_along_axis(batch["token_ids"], batch["target_index"] + 1, axis=1)
    hard = batch | {
        "top_ids": next_ids[..., None],
        "top_logprobs": jnp.zeros_like(batch["top_logprobs"][..., :1]),
    }
    nll = prefix_loss(prefix, model, hard).loss
    return tuple(jnp.sum(x) for x in (soft.kl, nll, soft.count))


def divergence(model: LanguageModel, arm: Arm, records: Sequence[bytes]) -> dict[str, float]:
    """Returns `kl` and `log_perplexity` in nats a token, and `tokens`, of an arm over records.

    Raises:
      InputError: if a record behind the arm's context exceeds the model's window.
    """
    prefix = arm.prefix if arm.prefix is not None else model.read(np.asarray(arm.prompt_head))
    placed = model.as_prefix(prefix)
    assert placed is not None  # what is None is an arm without a prefix
    totals = np.zeros(3)
    rows = BATCH_STEP * model.mesh.shape[DATA]
    decoded = [decode_record(record, "answers") for record in records]
    longest = int(placed.next_position) + max(row["token_ids"].size for row in decoded)
    if longest > model.config.window:
        raise InputError(
            f"context and conversation need {longest} positions, the model's window is "
            f"{model.config.window}"
        )
    for start in range(0, len(decoded), rows):
        batch = unpacked_rows(decoded[start : start + rows], rows)
        with jax.set_mesh(model.mesh):
            spec = jax.sharding.PartitionSpec(DATA)
            on_mesh = {k: place(model.mesh, v, spec) for k, v in batch.items()}
            totals += np.asarray([float(x) for x in _sums(model.transformer, placed, on_mesh)])
    kl, nll, count = totals
    return {"kl": kl / count, "log_perplexity": nll / count, "tokens": count}
