"""The settings of training."""

import dataclasses
from typing import Literal

from cartridges_jax.config import setting
from cartridges_jax.distillation.dataset import RowShape
from cartridges_jax.distillation.loss import TopJ
from cartridges_jax.distillation.targets import LossOn

Initializer = Literal["first_tokens", "sampled_spans", "text", "random"]
MAX_SEED = 2**32 - 1  # Grain's


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of training. The paper trains with rows of 1,024 tokens, batch 64, learning rate
    2e-2 (arXiv 2506.06266); `presets` carry what suits a model's size.
    """

    preset: str = setting(
        "", "The set of values by model size that these settings began from: laptop or paper."
    )
    num_slots: int = setting(64, "Slots of the cartridge, the frozen ones included.", above=0)
    num_frozen: int = setting(
        1, "Leading slots that stay as initialised (the attention sink).", at_least=0
    )
    initializer: Initializer = setting("first_tokens", "What the slots hold at the start.")
    init_text: str = setting("", "The text for --initializer=text.")
    num_steps: int = setting(400, "Optimizer steps.", above=0)
    rows_per_step: int = setting(
        1, "Packed rows of a step; a multiple of the devices that share rows.", above=0
    )
    rows_at_once: int = setting(
        0,
        "Rows of a step that are computed together, 0 for as many as memory takes: fewer need less "
        "for activations; they divide rows_per_step and are a multiple of the devices that share "
        "rows.",
        at_least=0,
    )
    recompute: Literal["auto", "nothing", "layers"] = setting(
        "auto",
        "What the backward pass computes again: nothing (products are kept, a third less time), "
        "layers (for the least memory), or auto: what memory takes.",
    )
    memory_gib: float = setting(
        0.0,
        "Memory of a device that a step may take, GiB; 0 for what the device says it has (a CPU "
        "says nothing, and computes all rows together).",
        at_least=0,
    )
    row_length: int = setting(512, "Tokens of a packed row; 2048 for large models.", above=0)
    targets_per_row: int = setting(
        0,
        "Places for targets in a row; 0 means half of row_length, or all with --loss_on=all.",
        at_least=0,
    )
    loss: TopJ = setting(
        "top_j",
        "What of the teacher's top 20 counts: top_j as they are, renormalised to 1, or tail with "
        "the rest of the vocabulary as one more outcome.",
    )
    labels: Literal["teacher", "tokens"] = setting(
        "teacher",
        "Learn the teacher's distribution, or only the tokens of the conversation (next-token "
        "baseline).",
    )
    loss_on: LossOn = setting(
        "answers", "Positions with targets: the answers' tokens, or all tokens of a conversation."
    )
    learning_rate: float = setting(2e-2, "Peak learning rate of Adam.", above=0)
    final_rate_share: float = setting(
        0.1, "Learning rate after the last step, as a share of the peak (linear).", at_least=0
    )
    warmup_steps: int = setting(
        10, "Steps over which the learning rate rises from near 0.", at_least=0
    )
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this global norm.", above=0)
    checkpoint_every: int = setting(
        50, "Steps between checkpoints, and between validations.", above=0
    )
    seed: int = setting(
        0, "Seed of the order of the data and of random initialisers.", at_least=0, at_most=MAX_SEED
    )

    def row_shape(self) -> RowShape:
        usual = self.row_length if self.loss_on == "all" else self.row_length // 2
        return RowShape(self.row_length, self.targets_per_row or usual)
