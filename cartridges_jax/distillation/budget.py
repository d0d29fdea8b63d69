"""How a step is cut so that it fits the memory of its devices: asked of the compiler.

Rows of a step may be computed in parts, and a backward pass may find the layers' products or
compute them again. What is saved is worth more than long parts: products that are computed again
cost half as much as a step without; parts cost another reading of the weights. So the first choice
is all rows with all products; then fewer rows; then, with all rows, none of the products.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from cartridges_jax import distributed
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.step import (
    abstract_batch,
    abstract_places,
    graph_of,
    make_train_step,
)
from cartridges_jax.distillation.targets import TOP_J
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.sharding import DATA

FAR = 1.3  # beyond what it may take: not tried, if by others' needs it would take so much
ROOM = 0.92  # of what a device says it has: others than this program hold some


def fitted(model: LanguageModel, config: TrainConfig, cartridges: int) -> TrainConfig:
    """The settings with `rows_at_once` and `recompute` as they fit; as they are if both are given.

    Args:
      model: on its mesh.
      config: settings; of several cartridges the one with the most slots.
      cartridges: that share a step.

    Raises:
      InputError: if nothing fits.
    """
    budget = config.memory_gib * 2**30 or _memory(model)
    variants = list(_variants(config, model.mesh.shape[DATA], cartridges))
    if not budget or len(variants) == 1:
        chosen = variants[0]
        return chosen if budget else dataclasses.replace(chosen, recompute=config.recompute)
    least = float("inf")
    told: _Needs | None = None
    for variant in variants:
        # Compilers of several processes may count differently; their programs must not.
        far = told is not None and told.foreseen(variant) > FAR * budget
        if not distributed.everywhere(not far):
            continue
        told = _needed(model, variant, cartridges)
        if distributed.everywhere(told.total <= budget):
            return variant
        least = min(least, told.total)
    needs = f"{least / 2**30:.2f} GiB" if least < float("inf") else "more than there is"
    raise InputError(
        f"a step needs {needs} of each device at least, and may take {budget / 2**30:.2f} GiB; "
        "use more devices with --fsdp, --quantization=int8, or lower num_slots or row_length"
    )


@dataclasses.dataclass(frozen=True)
class _Needs:
    """Bytes of a device while a step of `config` runs, and those that do not grow with its rows."""

    config: TrainConfig
    total: float
    fixed: float

    def foreseen(self, other: TrainConfig) -> float:
        """About what another one needs; 0 where that cannot be told."""
        if other.recompute != self.config.recompute or other.rows_at_once == 1:
            return 0.0
        share = other.rows_at_once / self.config.rows_at_once
        return self.fixed + (self.total - self.fixed) * share if self.total < float("inf") else 0.0


def _variants(config: TrainConfig, devices: int, cartridges: int) -> Iterator[TrainConfig]:
    rows = config.rows_per_step
    sizes = [config.rows_at_once] if config.rows_at_once else range(rows, 0, -1)
    each = devices if cartridges == 1 else 1
    ways = ("nothing", "layers") if config.recompute == "auto" else (config.recompute,)
    for way in ways:
        for size in sizes:
            if rows % size == 0 and size % each == 0:
                yield dataclasses.replace(config, rows_at_once=size, recompute=way)


def _memory(model: LanguageModel) -> float:
    """Bytes of a device that a step may take; 0 where devices do not say what they have."""
    stats = [device.memory_stats() or {} for device in model.mesh.local_devices]
    least = min(int(told.get("bytes_limit", 0)) for told in stats)
    return ROOM * min(int(told) for told in distributed.from_all(str(least).encode()))


def _needed(model: LanguageModel, config: TrainConfig, cartridges: int) -> _Needs:
    """What a step needs; without an end if the compiler gives up."""
    with jax.set_mesh(model.mesh):
        places = abstract_places(model.config, config, cartridges, model.mesh)
        top = min(TOP_J, model.config.vocab_size) if config.labels == "teacher" else 1
        batch = abstract_batch(config, cartridges, top, model.mesh)
        step = make_train_step(graph_of(config), config.loss, save_products(config))
        try:
            program: Any = step.lower(*places, model.transformer, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _Needs(config, float("inf"), 0.0)
    told = program.memory_analysis()
    fixed = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return _Needs(config, float(fixed + told.temp_size_in_bytes), float(fixed))


def save_products(config: TrainConfig) -> bool | None:
    """What `Transformer.__call__` is told; None leaves it to the platform."""
    return None if config.recompute == "auto" else config.recompute == "nothing"
