"""The file of `cartridges train --jobs`: JSON Lines, a cartridge to be trained in each.

    {"corpus": "contracts/acme", "data": "study/acme", "out": "cartridges/acme"}
    {"corpus": "contracts/bell", "data": "study/bell", "out": "cartridges/bell", "num_slots": 512}

Paths are relative to the working folder; every other field is a setting of `TrainConfig` and wins
over the flags.
"""

import dataclasses
import json
import os
import typing
from typing import Any

from cartridges_jax import files
from cartridges_jax.config import check_ranges
from cartridges_jax.corpus import read_corpus
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.job import Job
from cartridges_jax.errors import InputError

PATHS = ("corpus", "data", "out")


def read_jobs(path: str | os.PathLike[str], config: TrainConfig) -> list[Job]:
    """Reads the jobs of a file; what a line does not say is as in `config`.

    Raises:
      InputError: if the file or a line of it cannot be used; it says which.
    """
    file = files.local_path(path)
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the jobs in {path}: {error}") from error
    jobs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                jobs.append(_job(line, config))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not jobs:
        raise InputError(f"there is no job in {path}")
    return jobs


def _job(line: str, config: TrainConfig) -> Job:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InputError(f"no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"a job is an object with {', '.join(PATHS)}, not {line[:40]!r}")
    for name in PATHS:
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise InputError(f"{name} must name a file or folder, got {fields.get(name)!r}")
    corpus, data, out = (fields.pop(name) for name in PATHS)
    hints = typing.get_type_hints(TrainConfig)
    for name, value in fields.items():
        if name not in hints or name == "preset":  # whose values the flags have given
            raise InputError(f"{name!r} is neither {', '.join(PATHS)} nor a setting of training")
        fields[name] = _as(hints[name], name, value)
    changed = dataclasses.replace(config, **fields)
    check_ranges(changed)
    return Job(read_corpus(corpus).documents, data, out, changed)


def _as(hint: Any, name: str, value: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            choices = ", ".join(typing.get_args(hint))
            raise InputError(f"{name} must be one of {choices}, got {value!r}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value
