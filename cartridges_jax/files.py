"""Finished files only: written to a temporary name, synced, renamed.

A stage that is killed leaves either the old file or the new one, never a part. Paths go through
`etils.epath`, so `gs://` works; syncing applies to local disks.
"""

import json
import os
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError


def commit(temporary: epath.Path, final: epath.Path) -> None:
    """Syncs `temporary` to disk and renames it to `final`, replacing what was there."""
    local = "://" not in os.fspath(temporary)
    if local:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
    temporary.replace(final)
    if local:
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all."""
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_bytes(data)
    commit(temporary, path)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes JSON, indented, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def output_folder(path: epath.PathLike) -> epath.Path:
    """Makes a folder to write to.

    Raises:
      InputError: if it cannot be made or written to.
    """
    folder = epath.Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to the output folder {path}: {error.strerror}") from error
    return folder
