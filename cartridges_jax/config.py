"""One frozen dataclass per stage: its fields are the stage's settings, its flags and its JSON.

`setting(default, help)` declares a field; `define_flags` makes one absl flag of each, so that the
command line, the Python API and the provenance of a cartridge never list different settings.
"""

import dataclasses
import hashlib
import json
import operator
import typing
from typing import Any, TypeVar

from absl import flags

from cartridges_jax.errors import InputError

_BOUNDS = {"above": operator.gt, "at_least": operator.ge, "at_most": operator.le}
ConfigT = TypeVar("ConfigT")


def setting(
    default: Any,
    help: str,
    *,
    above: int | None = None,
    at_least: int | None = None,
    at_most: int | None = None,
) -> Any:
    """Declares a field of a stage's configuration; `help` names the unit.

    `above`, `at_least` and `at_most` are the bounds that `check_ranges` holds it to.
    """
    metadata = {"help": help, "above": above, "at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


def define_flags(config_class: type, flag_values: flags.FlagValues) -> None:
    """Defines one flag per field of `config_class`; one that is not given has no value.

    So that what is not given may come from a preset, see `from_flags`.
    """
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint, text = hints[field.name], field.metadata["help"]
        if typing.get_origin(hint) is typing.Literal:
            flags.DEFINE_enum(
                field.name, None, typing.get_args(hint), text, flag_values=flag_values
            )
        else:
            define[hint](field.name, None, text, flag_values=flag_values)


def from_flags(
    config_class: type[ConfigT],
    flag_values: flags.FlagValues,
    values: dict[str, Any] | None = None,
) -> ConfigT:
    """Builds the configuration: flags that were given, then `values`, then the fields' defaults."""
    names = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
    given = {n: flag_values[n].value for n in names if flag_values[n].value is not None}
    return config_class(**((values or {}) | given))


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_ranges(config: Any) -> None:
    """Raises `InputError` naming the first setting that is outside of its bounds."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        choices = typing.get_args(hints[field.name])
        if typing.get_origin(hints[field.name]) is typing.Literal and value not in choices:
            raise InputError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")
        for bound, holds in _BOUNDS.items():
            limit = field.metadata[bound]
            if limit is not None and not holds(value, limit):
                words = bound.replace("_", " ")
                raise InputError(f"{field.name} must be {words} {limit}, got {value}")


def first_difference(saved: Any, now: Any, path: str = "") -> str | None:
    """Says where two JSON-able values first differ, in a few words; None where they are equal."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted(saved.keys() | now.keys()):
            found = first_difference(saved.get(key), now.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    if isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        pairs = enumerate(zip(saved, now, strict=True))
        return next(
            filter(None, (first_difference(a, b, f"{path}[{i}]") for i, (a, b) in pairs)), None
        )
    if saved == now:
        return None
    return f"{path}={_shortened(saved)}, now {path}={_shortened(now)}"


def _shortened(value: Any) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
