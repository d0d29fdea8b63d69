"""From the name of a model to its source."""

import os
import re

from cartridges_jax import files
from cartridges_jax.errors import InputError
from cartridges_jax.models.sources import hub
from cartridges_jax.models.sources.base import ModelSource
from cartridges_jax.models.sources.default import DEFAULT_MODEL, open_default
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.sources.gguf import GgufSource

_HUB_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+\.gguf))?"
)
WAYS = (
    f"{DEFAULT_MODEL!r}, a Hugging Face folder (config.json, *.safetensors, tokenizer), a .gguf "
    "file, or a Hub name (org/name[@revision], or org/name[@revision]:FILE.gguf)"
)


def open_source(name: str | os.PathLike[str]) -> ModelSource:
    """Returns the source of a model, downloading it if it is a Hub name.

    Args:
      name: "smollm2", a folder, a .gguf file, `org/name[@revision]` or
        `org/name[@revision]:FILE.gguf`.

    Raises:
      InputError: if there is none of that name, or the download fails.
    """
    text = os.fspath(name)
    if text == DEFAULT_MODEL:
        return open_default()
    path = files.local_path(text)
    if path.is_dir():
        return FolderSource(path)
    if path.exists():
        return GgufSource(path)
    found = _HUB_NAME.fullmatch(text)
    if not found or (text.endswith(".gguf") and not found["file"]):
        raise InputError(f"there is no model {text}; give {WAYS}")
    if found["file"]:
        return GgufSource(hub.download(found["repo"], found["revision"], found["file"]))
    return FolderSource(hub.download(found["repo"], found["revision"]))


def hub_repository(name: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """Repository and revision of a Hub name that is of a folder; None for other names."""
    found = _HUB_NAME.fullmatch(os.fspath(name))
    return None if not found or found["file"] else (found["repo"], found["revision"])


def is_model_name(name: str | os.PathLike[str]) -> bool:
    """Whether a text that names no file may name a model: not if it ends as our files do."""
    text = os.fspath(name)
    is_file = text.endswith((".cartridge", ".json", ".jsonl"))
    return text == DEFAULT_MODEL or (not is_file and _HUB_NAME.fullmatch(text) is not None)
