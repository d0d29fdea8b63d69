"""Operations and bytes of a training step, counted from shapes: a device's, in one step.

A frozen base has no gradients of weights: a token costs two products with each weight forward, two
for the gradient of its activations, and two more where a layer is computed again. Attention is
counted as for rows that are not packed, the most it can be.
"""

import dataclasses

from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.lm_head import LOGITS_ON_TPU
from cartridges_jax.distillation.targets import TOP_J
from cartridges_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step lies on devices, beside what the settings of training say."""

    data: int
    model: int
    fsdp: bool
    save_products: bool
    cartridges: int = 1
    weight_bytes: float = 2.0  # of one weight; 1 for int8

    @property
    def cartridges_here(self) -> float:
        """Cartridges on a device: all devices of "data" share one, or each has some."""
        return self.cartridges / self.data if self.cartridges > 1 else 1.0

    def heads_here(self, count: int) -> float:
        """Kv heads on a device."""
        return count / self.model if count % self.model == 0 else float(count)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device, by kind."""

    weights: float
    cartridges: float  # slots, gradient, two moments
    gathered: float  # weights of a layer and the LM head while they are whole
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.cartridges + self.gathered + self.activations


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does in one step."""

    flops: float
    bytes_moved: float  # between its memory and its core
    gathered: float  # from other devices, of weights: while it works on what it has
    summed: float  # from other devices, of activations and gradients: it waits for these
    tokens: float  # of the whole step, all devices


def layer_weights(config: ModelConfig) -> int:
    """Weights of the matrices of all layers."""
    D, F, H = config.hidden_size, config.mlp_size, config.head_dim
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.num_layers * (D * H * heads + 3 * D * F)


def head_weights(config: ModelConfig) -> int:
    """Weights of the LM head."""
    return config.vocab_size * config.hidden_size


def _slots(config: ModelConfig, training: TrainConfig, layout: Layout) -> float:
    """Numbers of the cartridges on a device."""
    per_slot = 2 * config.num_layers * layout.heads_here(config.num_kv_heads) * config.head_dim
    return training.num_slots * per_slot * layout.cartridges_here


def _rows(training: TrainConfig, layout: Layout, at_once: bool) -> float:
    """Rows of a device, in a step or of those that are computed together."""
    rows = training.rows_at_once or training.rows_per_step if at_once else training.rows_per_step
    return rows * layout.cartridges / layout.data


def memory_of(config: ModelConfig, training: TrainConfig, layout: Layout) -> Memory:
    """An estimate to choose by before anything is compiled."""
    L, D, F = config.num_layers, config.hidden_size, config.mlp_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    parts = layout.data if layout.fsdp else 1
    matrices = layer_weights(config) + head_weights(config) * (2 - config.tie_embeddings)
    weights = matrices * layout.weight_bytes / layout.model / parts
    whole = 0.0
    if layout.fsdp and layout.data > 1:  # two layers, as one is gathered while one is used
        whole = 2 * layer_weights(config) / L + head_weights(config)
    tokens = _rows(training, layout, True) * training.row_length
    heads = (N / layout.model + 2 * layout.heads_here(K)) * H
    saved = 2 * D + 2 * N * H / layout.model  # a layer's input, and what attention keeps
    if layout.save_products:
        saved += 2 * (2 * F / layout.model + heads + D)
    working = 4 * D + 8 * F / layout.model + 8 * heads
    targets = _rows(training, layout, True) * training.row_shape().num_targets
    loss = targets * (4 * D + 8 * TOP_J) + training.rows_per_step / layout.data * 8 * TOP_J
    return Memory(
        weights=weights,
        cartridges=16 * _slots(config, training, layout),
        gathered=whole * layout.weight_bytes / layout.model,
        activations=tokens * (L * saved + working) + loss,
    )


def work_of(config: ModelConfig, training: TrainConfig, layout: Layout) -> Work:
    """What a device does in one step."""
    D, F, L = config.hidden_size, config.mlp_size, config.num_layers
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    T, M, p = training.row_length, training.row_shape().num_targets, training.num_slots
    rows = _rows(training, layout, False)
    parts = training.rows_per_step / (training.rows_at_once or training.rows_per_step)
    passes = 2 if layout.save_products else 3  # forward, gradient, and forward again
    pairs = rows * (T * p + T * (T + 1) / 2)
    flops = rows * T * 2 * passes * layer_weights(config)
    flops += L * 14 * N * H * pairs  # seven products: two forward, five backward
    flops += rows * M * 4 * head_weights(config)

    a_layer = layout.weight_bytes * layer_weights(config) / layout.model
    gathers = 1 if layout.fsdp and layout.data > 1 else 0
    moved = parts * passes * a_layer + parts * 2 * gathers * a_layer
    a_token = 2 * (6 * D + (3 * F + 3 * N * H + 4 * K * H) / layout.model)
    moved += rows * T * L * a_token * (passes + 1)
    here = head_weights(config) / layout.model
    chunks = max(1, M * rows / parts * 4 * here / D / LOGITS_ON_TPU)
    moved += parts * chunks * 2 * layout.weight_bytes * here  # the head is read for each chunk
    moved += rows * M * 4 * 4 * here / D  # the logits, written and read twice
    moved += 4 * _slots(config, training, layout) * (3 * parts + 7)

    others = (layout.data - 1) / layout.data
    gathered = parts * others * gathers * (2 * a_layer + layout.weight_bytes * here)
    summed = 0.0
    if layout.cartridges == 1 and layout.data > 1:
        summed += parts * 8 * others * _slots(config, training, layout)
    if layout.model > 1:  # four sums of activations a layer and pass, half of them backward
        between = (layout.model - 1) / layout.model
        summed += rows * T * L * 2 * D * 2 * between * 2 * passes
    return Work(
        flops=flops / layout.model,
        bytes_moved=moved,
        gathered=gathered,
        summed=summed,
        tokens=float(training.rows_per_step * T * layout.cartridges),
    )
