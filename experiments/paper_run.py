"""What the launch scripts of public benchmarks share: flags, study, training, the small model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from cartridges_jax import distributed
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.targets import score_targets
from cartridges_jax.distillation.train import train
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.loading import load_model
from cartridges_jax.presets import preset
from cartridges_jax.self_study.config import SynthesisConfig
from cartridges_jax.self_study.run import synthesize
from cartridges_jax.sharding import make_mesh
from experiments.small_model import SMALL_MODEL

OUT = flags.DEFINE_string("out", "runs/paper", "Folder for everything that is made.")
DATA_DIR = flags.DEFINE_string("data_dir", "runs/sets", "Where the data set is kept.")
MODEL = flags.DEFINE_string("model", "", "Of the base; empty: what the script says.")
NUM_SLOTS = flags.DEFINE_integer("num_slots", 2048, "Slots of the cartridge.")
MESH_MODEL = flags.DEFINE_integer("mesh_model", 1, "Devices that share a copy of the weights.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Joins the other hosts of the job.")
SMOKE = flags.DEFINE_bool(
    "smoke", False, "A made sample, the tests' small model and few steps: minutes on a laptop."
)
_SMALL_STUDY: dict[str, Any] = {
    "num_conversations": 16, "conversations_per_chunk": 8, "chunk_min_tokens": 40,
    "chunk_max_tokens": 120, "num_examples": 0, "question_share": 1.0, "question_max_tokens": 32,
    "answer_max_tokens": 16, "keep_unfinished": True,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of a benchmark: the base and what differs from the preset "paper"."""

    model: str
    study: dict[str, Any]
    training: dict[str, Any]


def start(settings: Settings) -> tuple[LanguageModel, LanguageModel]:
    """Joins the hosts; returns the base on this host's devices, and on those of all."""
    if DISTRIBUTED.value:
        distributed.start()
    name = SMALL_MODEL if SMOKE.value else MODEL.value or settings.model
    model = load_model(name, mesh=make_mesh(None, MESH_MODEL.value, jax.local_devices()))
    if distributed.count() == 1:
        return model, model
    return model, load_model(name, mesh=make_mesh(None, MESH_MODEL.value), fsdp=True)


def make_cartridge(
    models: tuple[LanguageModel, LanguageModel], documents: Sequence[Document], settings: Settings
) -> tuple[Cartridge, epath.Path]:
    """Self-study and training; goes on where it was. Returns the cartridge and its folder."""
    model, trainer = models
    out = epath.Path(OUT.value)
    study, training = settings.study, settings.training | {"num_slots": NUM_SLOTS.value}
    if SMOKE.value:
        study = _SMALL_STUDY
        training = {"num_slots": 24, "num_steps": 6, "rows_per_step": trainer.mesh.shape["data"],
                    "row_length": 128, "checkpoint_every": 3}  # fmt: skip
    synthesize(model, documents, out / "data", preset(SynthesisConfig, "paper", **study))
    score_targets(model, out / "data")
    config = preset(TrainConfig, "paper", **training)
    folder = out / f"p{config.num_slots}"
    return train(trainer, documents, out / "data", folder, config), folder
