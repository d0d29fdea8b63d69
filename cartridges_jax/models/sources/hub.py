"""The Hugging Face Hub: a repository's folder, or one file of it, downloaded once for each host.

`huggingface_hub` keeps the files in its own cache and shows the progress; without a network, what
is in the cache is used.
"""

from collections.abc import Callable

import huggingface_hub
from huggingface_hub import errors

from cartridges_jax.errors import InputError

_WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
_UNWANTED = ("*/*", "consolidated*")  # other formats of the same weights


def download_folder(repo: str, revision: str | None) -> str:
    """Returns the folder of `org/name`.

    Raises:
      InputError: if it cannot be had.
    """
    return _told(
        repo,
        revision,
        lambda: huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        ),
    )


def download_file(repo: str, revision: str | None, name: str) -> str:
    """Returns the path of one file of `org/name`.

    Raises:
      InputError: if it cannot be had.
    """
    return _told(
        repo, revision, lambda: huggingface_hub.hf_hub_download(repo, name, revision=revision)
    )


def _told(repo: str, revision: str | None, download: Callable[[], str]) -> str:
    """Downloads; says what is wrong in one sentence if that fails."""
    at = f" at revision {revision}" if revision else ""
    try:
        return download()
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
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"there is no folder {repo} here, and the Hub cannot be reached; without a network, "
            "give the path of a folder with config.json, *.safetensors and the tokenizer, or of a "
            ".gguf file"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{repo}{at} on the Hub has no such file: {error}") from error
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} is no folder and no Hub name: {error}") from error
    except Exception as error:  # what the transports raise has no common class
        raise InputError(
            f"there is no folder {repo} here, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}); without a network, give the path of a folder with "
            "config.json, *.safetensors and the tokenizer, or of a .gguf file"
        ) from error
