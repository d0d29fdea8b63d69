"""`cartridges plan`."""

import dataclasses
import json
import os
from typing import Any

from absl import flags

from cartridges_jax.commands import common
from cartridges_jax.config import define_flags, from_flags
from cartridges_jax.errors import InputError

HELP = "say what a job would need on devices that are not here"
PRESET = "paper"


def config_class() -> Any:
    from cartridges_jax.distillation.config import TrainConfig

    return TrainConfig


def define(values: flags.FlagValues) -> None:
    common.define_string(
        values, "model", None, "Folder, .gguf file, Hub name or config.json of the model."
    )
    common.define_string(
        values,
        "topology",
        None,
        "Where: v5e-16, v6e-8, v5p-64, tpu7x-8, gpu:h200x8 (by arithmetic); a kind alone, such as "
        "v6e, for its smallest slice that fits.",
    )
    flags.DEFINE_bool(
        "serve", False, "Plan the decoding of requests instead of training.", flag_values=values
    )
    for name, default, text in (
        ("cartridges", 1, "Cartridges that are trained in one step (train --jobs)."),
        ("mesh_data", 0, "Devices that share rows; 0: chosen."),
        ("mesh_model", 0, "Devices that share one copy of the weights; 0: chosen."),
        ("conversations", 0, "Of the training data, to count its steps; 0: num_steps is given."),
        ("conversation_tokens", 600, "Tokens of a conversation, on average."),
        ("epochs", 1, "Passes over the conversations."),
        ("requests", 64, "With --serve, requests that decode together."),
        ("request_tokens", 1024, "With --serve, tokens of a request and its answer."),
    ):
        flags.DEFINE_integer(name, default, text, flag_values=values)
    flags.DEFINE_enum(
        "quantization", "none", ("none", "int8"), "Of the model's matrices.", flag_values=values
    )
    flags.DEFINE_float(
        "share",
        0.45,
        "Of the peak of its products that a chip reaches in practice; 0.45 is what MaxText reports "
        "for Llama-3.1-8B on v6e-256.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "price", 0.0, "Dollars an hour for the slice; 0: of the list.", flag_values=values
    )
    flags.DEFINE_bool("json", False, "Print JSON instead of lines.", flag_values=values)
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    import jax

    from cartridges_jax import presets
    from cartridges_jax.planning import chips, tell
    from cartridges_jax.planning.plan import Asked, plan, smallest_slice
    from cartridges_jax.planning.serve import plan_serving

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # the accelerators of this machine are not asked
    if values.price < 0:
        raise InputError(f"price must not be below 0, got {values.price}")
    if not 0 < values.share <= 1:
        raise InputError(f"share must be above 0 and at most 1, got {values.share}")
    preset = values.preset if values.preset is not None else PRESET
    training = from_flags(config_class(), values, presets.values_for(config_class(), preset))
    asked = Asked(
        _config(values.model), _with_steps(values, training), values.cartridges,
        values.quantization, values.mesh_model, values.mesh_data,
    )  # fmt: skip
    kinds = (*chips.SLICES, *(f"gpu:{kind}" for kind in chips.GPUS))
    if values.topology in kinds:
        where = None
        kind = values.topology.removeprefix("gpu:")
        candidates = chips.slices_of(kind)
    else:
        where = chips.parse_slice(values.topology)
        candidates = [where]
    if values.serve:
        found = plan_serving(asked, candidates, values.requests, values.request_tokens)
        lines, fields = tell.serving(found)
    else:
        found = plan(asked, where) if where else smallest_slice(asked, candidates[0].kind)
        lines, fields = tell.training(asked, found, values.share, values.price or None)
    print(json.dumps(fields, indent=2) if values.json else "\n".join(lines))


def _config(name: str) -> Any:
    """The configuration of a model, without a look at its weights."""
    from cartridges_jax import files
    from cartridges_jax.models.config import parse_config
    from cartridges_jax.models.sources.hub import download
    from cartridges_jax.models.sources.locate import hub_repository, open_source

    path = files.local_path(name)
    if path.suffix == ".json" or (path.is_dir() and (path / "config.json").exists()):
        file = path if path.suffix == ".json" else path / "config.json"
        try:
            fields = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise InputError(
                f"there is no file {file}; give a config.json or its folder"
            ) from error
        except (ValueError, OSError) as error:
            raise InputError(f"{file} is no config.json ({error})") from error
        if not isinstance(fields, dict):
            raise InputError(f"{file} is no config.json: it holds no object")
        return parse_config(fields, str(file))
    hub_name = hub_repository(name) if not path.exists() else None
    if hub_name is not None:  # the configuration alone is downloaded
        return _config(download(*hub_name, "config.json"))
    return open_source(name).config()


def _with_steps(values: flags.FlagValues, training: Any) -> Any:
    """The settings with the number of steps that so much data takes."""
    if values.conversations < 0 or values.conversation_tokens < 1 or values.epochs < 1:
        raise InputError("conversations, conversation_tokens and epochs must be above 0")
    if not values.conversations:
        return training
    if values.num_steps is not None:
        raise InputError("give --num_steps or --conversations, not both")
    if values.conversation_tokens > training.row_length:
        raise InputError(
            f"conversations of {values.conversation_tokens} tokens fit no row of "
            f"{training.row_length}; raise row_length"
        )
    tokens = values.conversations * values.conversation_tokens * values.epochs
    a_step = training.rows_per_step * training.row_length
    return dataclasses.replace(training, num_steps=max(1, round(tokens / a_step)))
