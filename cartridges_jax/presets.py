"""Settings by the size of the model: what a stage's defaults cannot know.

A preset is a set of values for the fields of the stages' configurations. A flag or an argument of
one's own wins over it; the preset's name is kept with the settings that it gave.
"""

import dataclasses
from typing import Any, TypeVar

from cartridges_jax.errors import InputError

ConfigT = TypeVar("ConfigT")

PRESETS: dict[str, dict[str, Any]] = {
    # 135 M to 1 B parameters on a CPU: chunks of a few pages, examples for bot A, answers of about
    # a sentence (such a model rambles on), few rows a step, a high rate, targets on requests too.
    "laptop": {
        "num_conversations": 512,
        "conversations_per_chunk": 64,
        "chunk_min_tokens": 1024,
        "chunk_max_tokens": 2048,
        "num_examples": 5,
        "question_share": 0.8,
        "question_max_tokens": 48,
        "answer_max_tokens": 48,
        "answer_max_sentences": 1,
        "keep_unfinished": True,
        "row_length": 512,
        "rows_per_step": 1,
        "num_steps": 300,
        "learning_rate": 7e-2,
        "loss_on": "all",
    },
    # 3 B to 8 B (arXiv 2506.06266; LongHealth on Llama-3.2-3B): 2 x 65,536 conversations, slots
    # from 128 to 8,192, batches of 64 x 1,024 tokens, here in rows that take the longest answers.
    "paper": {
        "num_conversations": 131_072,
        "conversations_per_chunk": 64,
        "chunk_min_tokens": 512,
        "chunk_max_tokens": 4096,
        "num_examples": 0,
        "question_share": 0.2,
        "question_max_tokens": 512,
        "answer_max_tokens": 1024,
        "num_slots": 2048,
        "row_length": 2048,
        "rows_per_step": 32,
        "num_steps": 2000,
        "learning_rate": 2e-2,
        "loss_on": "all",
    },
}


def values_for(config_class: type, preset: str) -> dict[str, Any]:
    """The preset's values of the fields that a configuration has.

    Raises:
      InputError: if there is no preset of that name.
    """
    if preset not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    fields = {field.name for field in dataclasses.fields(config_class)}
    named = {"preset": preset} if "preset" in fields else {}
    return named | {k: v for k, v in PRESETS[preset].items() if k in fields}


def preset(config_class: type[ConfigT], name: str, **changes: Any) -> ConfigT:
    """A stage's configuration with a preset's values, and further changes."""
    return config_class(**(values_for(config_class, name) | changes))
