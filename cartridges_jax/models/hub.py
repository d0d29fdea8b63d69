"""Where a model's files are: in a folder, or on the Hugging Face Hub.

A Hub model is downloaded once for each host by `huggingface_hub`, which keeps it in its own cache
and shows the progress; without a network, what is in the cache is used.
"""

import os
import re

import huggingface_hub
from etils import epath
from huggingface_hub import errors

from cartridges_jax import files
from cartridges_jax.errors import InputError

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
_UNWANTED = ("*/*", "consolidated*")  # other formats of the same weights


def locate_model(name: str | os.PathLike[str]) -> epath.Path:
    """Returns the folder of a model, downloading it if it is a Hub name.

    Args:
      name: a folder, or `org/name[@revision]` on the Hub.

    Raises:
      InputError: if there is no such folder, or the download fails.
    """
    folder = files.local_path(name)
    if folder.is_dir():
        return folder
    found = _HUB_NAME.fullmatch(os.fspath(name))
    if not found:
        raise InputError(
            f"there is no model folder {name}; give a Hugging Face folder (config.json, "
            "*.safetensors, tokenizer) or a Hub name (org/name[@revision])"
        )
    return _download(found["repo"], found["revision"])


def is_model_name(name: str | os.PathLike[str]) -> bool:
    """Whether a text that names no file may name a model: not if it ends as our files do."""
    text = os.fspath(name)
    is_file = text.endswith((".cartridge", ".json", ".jsonl"))
    return not is_file and _HUB_NAME.fullmatch(text) is not None


def _download(repo: str, revision: str | None) -> epath.Path:
    try:
        path = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo} asks for its licence to be accepted on the Hub; accept it there and run "
            "`hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"there is no folder {repo} here and no model {repo}{at} on the Hub (or it is "
            "private: run `hf auth login`)"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} is no folder and no Hub name: {error}") from error
    except Exception as error:  # what the transports raise has no common class
        raise InputError(
            f"there is no folder {repo} here, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); without a network, give the path of a folder with "
            "config.json, *.safetensors and the tokenizer"
        ) from error
    return epath.Path(path)
