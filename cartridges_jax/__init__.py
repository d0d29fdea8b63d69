"""Cartridges for JAX: train a small KV prefix per corpus once, and serve it instead of the text.

The public names are loaded on first use, so that importing the package, its corpus tools or its
command line does not import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cartridges_jax.cartridge import Cartridge as Cartridge
    from cartridges_jax.corpus import Document as Document
    from cartridges_jax.corpus import load_documents as load_documents
    from cartridges_jax.distillation.config import TrainConfig as TrainConfig
    from cartridges_jax.distillation.targets import score_targets as score_targets
    from cartridges_jax.distillation.train import train as train
    from cartridges_jax.errors import InputError as InputError
    from cartridges_jax.evaluation.run import EvaluateConfig as EvaluateConfig
    from cartridges_jax.evaluation.run import evaluate as evaluate
    from cartridges_jax.language_model import LanguageModel as LanguageModel
    from cartridges_jax.loading import load_model as load_model
    from cartridges_jax.presets import preset as preset
    from cartridges_jax.self_study.config import SynthesisConfig as SynthesisConfig
    from cartridges_jax.self_study.run import synthesize as synthesize

_HOME = {
    "Cartridge": "cartridge",
    "Document": "corpus",
    "EvaluateConfig": "evaluation.run",
    "InputError": "errors",
    "LanguageModel": "language_model",
    "SynthesisConfig": "self_study.config",
    "TrainConfig": "distillation.config",
    "evaluate": "evaluation.run",
    "load_documents": "corpus",
    "load_model": "loading",
    "preset": "presets",
    "score_targets": "distillation.targets",
    "synthesize": "self_study.run",
    "train": "distillation.train",
}
__all__ = [
    "Cartridge",
    "Document",
    "EvaluateConfig",
    "InputError",
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
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
