"""Finished files only: written to a temporary name, synced, renamed.

A stage that is killed leaves either the old file or the new one, never a part; its temporary file
is removed when the folder is opened the next time. Paths are `etils.epath`s; only those of a local
disk are accepted so far, because nothing here has been tried on object storage.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError

_TEMPORARY = ".tmp-"  # followed by the id of the process that writes


def commit(temporary: epath.Path, final: epath.Path) -> None:
    """Syncs `temporary` to disk and renames it to `final`, replacing what was there."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def local_path(path: epath.PathLike) -> epath.Path:
    """Returns a path that a person gave, with `~` expanded.

    Raises:
      InputError: if it is empty or not on a local disk.
    """
    if not os.fspath(path):
        raise InputError("a path is empty; write . for the current folder")
    if "://" in os.fspath(path):
        raise InputError(f"{path} is not on a local disk; copy it here, or write here and copy")
    return epath.Path(path).expanduser()


def temporary_name(final: epath.Path) -> epath.Path:
    """The name that a file has until it is whole; it tells whose it is."""
    return final.with_name(f"{final.name}{_TEMPORARY}{os.getpid()}")


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
    """Keeps other processes that ask for the same out of a folder; they wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep(folder: epath.Path) -> None:
    """Removes the temporary files of processes that are gone."""
    for file in folder.glob(f"*{_TEMPORARY}*"):
        process = file.name.rpartition(_TEMPORARY)[2]
        if process.isdigit() and not _is_running(int(process)):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all."""
    path = epath.Path(path)
    temporary = temporary_name(path)
    temporary.write_bytes(data)
    commit(temporary, path)


def write_json(path: epath.PathLike, value: Any, indent: int | None = 2) -> None:
    """Writes JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def cache_folder() -> epath.Path:
    """The user's cache of this package: compiled programs and hashes. Safe to delete."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return epath.Path(home) / "cartridges_jax"


def output_folder(path: epath.PathLike) -> epath.Path:
    """Makes a folder to write to.

    Raises:
      InputError: if it cannot be made or written to.
    """
    folder = local_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / ".writable")
        probe.write_bytes(b"")
        probe.unlink()
        sweep(folder)
    except OSError as error:
        raise InputError(f"cannot write to the output folder {path}: {error.strerror}") from error
    return folder
