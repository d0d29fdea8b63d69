"""Cartridges for JAX: train a small KV prefix per corpus once, and serve it instead of the text.

The public names are loaded on first use, so that importing the package, its corpus tools or its
command line does not import jax.
"""

from etils import epy

__version__ = "0.1.0"
__all__ = [
    "Cartridge",
    "Document",
    "EvaluateConfig",
    "InputError",
    "Job",
    "LanguageModel",
    "SynthesisConfig",
    "TrainConfig",
    "evaluate",
    "load_documents",
    "load_model",
    "preset",
    "score_targets",
    "synthesize",
    "train",
    "train_many",
]

with epy.lazy_api_imports(globals()):
    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.corpus import Document, load_documents
    from cartridges_jax.distillation.config import TrainConfig
    from cartridges_jax.distillation.job import Job
    from cartridges_jax.distillation.targets import score_targets
    from cartridges_jax.distillation.train import train, train_many
    from cartridges_jax.errors import InputError
    from cartridges_jax.evaluation.run import EvaluateConfig, evaluate
    from cartridges_jax.language_model import LanguageModel
    from cartridges_jax.loading import load_model
    from cartridges_jax.presets import preset
    from cartridges_jax.self_study.config import SynthesisConfig
    from cartridges_jax.self_study.run import synthesize
