"""A cartridge: the keys and values of p virtual tokens in every layer of a frozen model.

It stands in for a context: a model attends to its slots as if it had just read them. The first
slots are frozen (slot 0 is the attention sink; training it destroys the model's general ability),
the others are trained. Keys are stored rotated, so a cartridge belongs to one model exactly; its
provenance says which.
"""

import json
import os
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cartridges_jax import files
from cartridges_jax.errors import InputError
from cartridges_jax.models.transformer import KV, Prefix


class FrozenSlot(nnx.Variable):
    """Slots that training never changes."""


class TrainableSlot(nnx.Variable):
    """Slots that training changes."""


class Cartridge(nnx.Module):
    """Frozen and trainable slots [L, F, K, H] and [L, p - F, K, H], float32 while in training.

    C of them that share a training step lie in one, with an axis C behind L (`distillation.step`).
    """

    def __init__(
        self,
        keys: Float[Array, "L P K H"],
        values: Float[Array, "L P K H"],
        *,
        num_frozen: int = 1,
        next_position: int | None = None,
        provenance: dict[str, Any] | None = None,
    ):
        """Makes a cartridge of given slots.

        Args:
          keys: rotated keys.
          values: values.
          num_frozen: leading slots that stay as they are.
          next_position: rope position of the first token after it; None for the slot count.
          provenance: how it was made (JSON-able); see `cartridge_file`.

        Raises:
          InputError: if there is no slot or the counts do not fit.
        """
        slots = keys.shape[1]
        if slots < 1 or keys.shape != values.shape:
            raise InputError(f"a cartridge needs slots; got keys {keys.shape}, {values.shape}")
        if not 0 <= num_frozen <= slots:
            raise InputError(f"{num_frozen=} is outside of 0..{slots}, the slots there are")
        self.frozen_keys = FrozenSlot(keys[:, :num_frozen])
        self.frozen_values = FrozenSlot(values[:, :num_frozen])
        self.trainable_keys = TrainableSlot(keys[:, num_frozen:])
        self.trainable_values = TrainableSlot(values[:, num_frozen:])
        self.next_position = slots if next_position is None else next_position
        # Kept as text: a module's static fields must be hashable.
        self._provenance = json.dumps(provenance or {}, sort_keys=True)

    @property
    def provenance(self) -> dict[str, Any]:
        """How it was made: model, corpus, data, settings, evaluation."""
        return json.loads(self._provenance)

    @property
    def num_frozen(self) -> int:
        return self.frozen_keys[...].shape[-3]

    @property
    def num_slots(self) -> int:
        """All slots p, the frozen ones included."""
        return self.num_frozen + self.trainable_keys[...].shape[-3]

    @property
    def keys(self) -> Float[Array, "L *C P K H"]:
        return jnp.concatenate([self.frozen_keys[...], self.trainable_keys[...]], axis=-3)

    @property
    def values(self) -> Float[Array, "L *C P K H"]:
        return jnp.concatenate([self.frozen_values[...], self.trainable_values[...]], axis=-3)

    def prefix(self, dtype) -> Prefix:
        """The slots as the model takes them, cast to `dtype`; differentiable."""
        return Prefix(
            KV(self.keys.astype(dtype), self.values.astype(dtype)),
            jnp.asarray(self.num_slots, jnp.int32),
            jnp.asarray(self.next_position, jnp.int32),
        )

    def with_provenance(self, dtype, provenance: dict[str, Any]) -> "Cartridge":
        """The same slots in `dtype`, with the story of how they were made."""
        return Cartridge(
            self.keys.astype(dtype),
            self.values.astype(dtype),
            num_frozen=self.num_frozen,
            next_position=self.next_position,
            provenance=provenance,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.cartridge` file; see `cartridge_file.save`."""
        from cartridges_jax import cartridge_file  # the file format knows the class, not vice versa

        cartridge_file.save(files.local_path(path), self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Cartridge":
        """Reads a `.cartridge` file; see `cartridge_file.load`."""
        from cartridges_jax import cartridge_file

        return cartridge_file.load(files.local_path(path))
