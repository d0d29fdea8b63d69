"""Records in ArrayRecord files: written whole, read a few files at a time.

What `shards` does with files, without a word of units and manifests.
"""

import collections
import hashlib
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from cartridges_jax import files

OPEN_FILES = 32
_WRITER_OPTIONS = "group_size:1,zstd:3"  # every record can be read on its own


def write_file(path: epath.Path, records: Sequence[bytes], commit: bool = True) -> None:
    """Writes a file under its temporary name, and unless told otherwise commits it."""
    temporary = files.temporary_name(path)
    with files.writing(path):
        writer = ArrayRecordWriter(os.fspath(temporary), _WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        if commit:
            files.commit(temporary, path)


class Readers:
    """Open files, the last ones that were used; one thread reads at a time."""

    def __init__(self):
        self._open: collections.OrderedDict[tuple[Any, ...], Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: epath.Path, start: int, stop: int) -> list[bytes]:
        """Reads records of a file."""
        stat = pathlib.Path(path).stat()
        key = (os.fspath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        with self._lock:
            reader = self._open.pop(key, None) or ArrayRecordReader(key[0])
            self._open[key] = reader
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            if reader.num_records() < stop:
                raise IndexError(f"it holds {reader.num_records()} records, {stop} expected")
            return reader.read(start, stop)


def hash_of(records: Sequence[bytes]) -> str:
    """Over the records and their lengths, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(len(record).to_bytes(8, "little"))
        digest.update(record)
    return digest.hexdigest()
