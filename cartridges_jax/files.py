"""Finished files only: written to a temporary name, synced, renamed.

A stage that is killed leaves either the old file or the new one, never a part; its temporary file
is removed when the folder is opened the next time. A disk that is full ends in one sentence. Paths
are `etils.epath`s; only those of a local disk are accepted so far, because nothing here has been
tried on object storage.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

from etils import epath

from cartridges_jax.errors import DiskError, InputError

_TEMPORARY = ".tmp-"  # followed by the host and the id of the process that writes
_HOST = re.sub(r"[^\w.]", "", os.uname().nodename) or "host"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


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
      InputError: if it is empty or not on a local disk, or nobody knows the home folder it names.
    """
    if not os.fspath(path):
        raise InputError("a path is empty; write . for the current folder")
    if "://" in os.fspath(path):
        raise InputError(f"{path} is not on a local disk; copy it here, or write here and copy")
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~"):
        raise InputError(f"no home folder is known for {path}; write the path out, or ./ before it")
    return epath.Path(expanded)


def temporary_name(final: epath.Path) -> epath.Path:
    """The name that a file has until it is whole; it tells whose it is."""
    return final.with_name(f"{final.name}{_TEMPORARY}{_HOST}-{os.getpid()}")


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
    """Removes the temporary files of this host's processes that are gone; disks may be shared."""
    for file in folder.glob(f"*{_TEMPORARY}{_HOST}-*"):
        process = file.name.rpartition("-")[2]
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


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """What writes a file, or a library that does: a disk that takes no more is one sentence.

    Raises:
      DiskError: if the disk is full or fails; what was written under a temporary name is removed.
    """
    path = epath.Path(path)
    try:
        yield
    except Exception as error:
        reason = next(filter(None, map(_disk_error, _causes(error))), None)
        if reason is None:
            raise
        temporary_name(path).unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 2**20
        raise DiskError(
            f"cannot write {path}: {reason} ({free:,.1f} MiB are free there); make room and run "
            "the same again, what is finished is kept"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_error(error: BaseException) -> str | None:
    """What is wrong with the disk; libraries in C++ tell it in the words of their errors alone."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return os.strerror(error.errno)
    return next((os.strerror(e) for e in _DISK_ERRORS if os.strerror(e) in str(error)), None)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Writes a file whole or not at all; InputError where the disk is full."""
    path = epath.Path(path)
    with writing(path):
        temporary = temporary_name(path)
        temporary.write_bytes(data)
        commit(temporary, path)


def touch(path: epath.Path) -> None:
    """Makes an empty file; DiskError where the disk is full."""
    with writing(path):
        path.write_bytes(b"")


def write_json(path: epath.PathLike, value: Any, indent: int | None = 2) -> None:
    """Writes JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def cache_folder(name: str) -> epath.Path | None:
    """A folder of the user's cache of this package, safe to delete; None where none can be had.

    A user may have no home folder, or none that can be written to (containers, cluster jobs).
    """
    home = epath.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not home.is_absolute():
        return None
    folder = home / "cartridges_jax" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


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
