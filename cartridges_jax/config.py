"""One frozen dataclass per stage: its fields are the stage's settings, its flags and its JSON.

`setting(default, help)` declares a field; `define_flags` makes one absl flag of each, so that the
command line, the Python API and the provenance of a cartridge never list different settings.
"""

import dataclasses
import hashlib
import json
import typing
from typing import Any, TypeVar

from absl import flags

from cartridges_jax.errors import InputError

ConfigT = TypeVar("ConfigT")


def setting(default: Any, help: str) -> Any:
    """Declares a field of a stage's configuration; `help` names the unit."""
    return dataclasses.field(default=default, metadata={"help": help})


def define_flags(config_class: type, flag_values: flags.FlagValues) -> None:
    """Defines one flag per field of `config_class`, with its default and help."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint, text = hints[field.name], field.metadata["help"]
        shared: dict[str, Any] = {"flag_values": flag_values}
        default: Any = field.default
        if typing.get_origin(hint) is typing.Literal:
            flags.DEFINE_enum(field.name, default, typing.get_args(hint), text, **shared)
        elif hint is bool:
            flags.DEFINE_bool(field.name, default, text, **shared)
        elif hint is int:
            flags.DEFINE_integer(field.name, default, text, **shared)
        elif hint is float:
            flags.DEFINE_float(field.name, default, text, **shared)
        elif hint is str:
            flags.DEFINE_string(field.name, default, text, **shared)
        else:
            raise TypeError(f"no flag type for {config_class.__name__}.{field.name}: {hint}")


def from_flags(config_class: type[ConfigT], flag_values: flags.FlagValues) -> ConfigT:
    """Builds the configuration from parsed flags."""
    names = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
    return config_class(**{name: flag_values[name].value for name in names})


def to_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def require_positive(config: Any, *names: str) -> None:
    """Raises `InputError` naming the first of the fields that is not above 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise InputError(f"{name} must be above 0, got {value}")
