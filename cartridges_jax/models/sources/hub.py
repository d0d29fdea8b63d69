"""The Hugging Face Hub: a repository's folder, or one file of it, downloaded once for each host.

`huggingface_hub` keeps the files in its own cache and shows the progress; without a network, what
is in the cache is used.
"""

import pathlib

import huggingface_hub
from huggingface_hub import constants, errors

from cartridges_jax.errors import InputError

_WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
_UNWANTED = ("*/*", "consolidated*")  # other formats of the same weights


def download(repo: str, revision: str | None, name: str = "") -> str:
    """Returns the path of the folder of `org/name`, or of one file of it.

    Raises:
      InputError: that says in one sentence why it cannot be had.
    """
    if not pathlib.PurePath(constants.HF_HUB_CACHE).is_absolute():
        raise InputError(f"there is no home folder to keep {repo} in; set HOME or HF_HOME")
    at = f" at revision {revision}" if revision else ""
    try:
        if name:
            return huggingface_hub.hf_hub_download(repo, name, revision=revision)
        return huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo} asks for its licence to be accepted on the Hub; accept it there and run "
            "`hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(
            f"there is no folder {repo} here and no model {repo}{at} on the Hub (or it is "
            "private: run `hf auth login`)"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise InputError(f"{repo}{at} on the Hub has no such file: {error}") from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} is no folder and no Hub name: {error}") from error
    except Exception as error:  # what the transports raise has no common class
        raise InputError(
            f"there is no folder {repo} here, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); without a network, give the path of a folder with "
            "config.json, *.safetensors and the tokenizer, or of a .gguf file"
        ) from error
