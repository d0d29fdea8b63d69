"""The LM head at chosen positions, a chunk at a time: `[B, T, V]` logits never exist.

`LogitChunks` is what losses and scoring run over, on each device by itself: its rows' positions in
chunks, and its part of the vocabulary where that is split over "model". A part's logits are made
whole by a few numbers a position that are summed over devices, never by gathering them.

Time grows with positions * D * V, memory with chunk * V / devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from cartridges_jax.models.linear import Head
from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, TOKENS_BT, on_tpu

CHUNK = 128  # most positions of a device whose logits exist at a time
# On TPU, bytes of these. The head is read anew for each chunk: with 128k words of width 4,096 on a
# chip, chunks of 24 MiB (which stay in VMEM) take 86 GB of traffic for 2,048 targets, as long as
# all layers on v6e; those of 96 MiB take 22 GB, and some 6 for the logits themselves.
LOGITS_ON_TPU = 96 * 2**20


class Logits(NamedTuple):
    """One device's part of a chunk's logits: the ids from `first` on."""

    values: Float[Array, "M V"]
    first: jax.Array

    def log_softmax(self) -> Float[Array, "M V"]:
        """Log-probabilities over the whole vocabulary, of this part's ids."""
        top = jax.lax.pmax(self.values.max(-1), MODEL)[:, None]
        return self.values - top - jnp.log(over_vocabulary(jnp.exp(self.values - top)))


def over_vocabulary(x: Float[Array, "M V"]) -> Float[Array, "M 1"]:
    """Sums a device's part of the vocabulary, and that over devices."""
    return jax.lax.psum(x.sum(-1, keepdims=True), MODEL)


@dataclasses.dataclass(frozen=True)
class LogitChunks:
    """How one device's positions are cut, and which words of the vocabulary are its own."""

    positions: int
    head: Head

    @property
    def first(self) -> jax.Array:
        """The first id of this device's part."""
        return jax.lax.axis_index(MODEL) * self.head.weight.shape[0]

    @property
    def count(self) -> int:
        words = self.head.weight.shape[0]
        most = max(8, LOGITS_ON_TPU // (4 * words)) if on_tpu() else CHUNK
        return max(1, -(-self.positions // most))

    @property
    def size(self) -> int:
        """Even chunks of whole sublanes: little padding."""
        return -(-self.positions // (8 * self.count)) * 8

    def cut(self, x: Shaped[Array, "B M *rest"]) -> Shaped[Array, "count size *rest"]:
        """What belongs to each position, padded, as chunks."""
        x = x.reshape(self.positions, *x.shape[2:])
        extra = self.count * self.size - self.positions
        x = jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(self.count, self.size, *x.shape[1:])

    def join(self, x: Shaped[Array, "count size *rest"], rows: int) -> Shaped[Array, "B M *rest"]:
        """The inverse of `cut`."""
        rest = x.shape[2:]
        return x.reshape(-1, *rest)[: self.positions].reshape(rows, -1, *rest)


def gather_positions(
    hidden: Float[Array, "B T D"], index: Int[Array, "B M"]
) -> Float[Array, "B M D"]:
    """Picks positions of each row, on the device that holds the row."""

    def local(hidden, index):
        return jnp.take_along_axis(hidden, index[..., None], axis=1)

    return jax.shard_map(local, in_specs=(ACT_BTD, TOKENS_BT), out_specs=ACT_BTD)(hidden, index)


def top_log_probabilities(
    model: Transformer, picked: Float[Array, "B M D"], top: int
) -> tuple[Int[Array, "B M J"], Float[Array, "B M J"]]:
    """The `top` likeliest ids, likeliest first, and their log-probabilities in float32.

    With the vocabulary over "model" each device ranks its own part; of these the likeliest are
    gathered.

    Args:
      model: gives the LM head.
      picked: normed hidden states of the positions.
      top: how many, at most the size of the vocabulary.
    """
    head = model.head

    def local(picked, head):
        chunks = LogitChunks(picked.shape[0] * picked.shape[1], head)

        def one(hidden):
            logq = Logits(head.logits(hidden), chunks.first).log_softmax()
            values, ids = jax.lax.top_k(logq, min(top, logq.shape[-1]))
            gather = functools.partial(jax.lax.all_gather, axis_name=MODEL, axis=1, tiled=True)
            values, where = jax.lax.top_k(gather(values), top)
            return jnp.take_along_axis(gather(ids + chunks.first), where, axis=1), values

        ids, values = jax.lax.map(one, chunks.cut(picked))
        return chunks.join(ids, len(picked)), chunks.join(values, len(picked))

    rows = P(DATA, None, None)
    run: Callable = jax.shard_map(
        local, in_specs=(ACT_BTD, head.specs), out_specs=(rows, rows), check_vma=False
    )
    return run(picked, head)
