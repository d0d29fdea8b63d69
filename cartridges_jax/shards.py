"""Finished shards: ArrayRecord files that are whole or not there, listed in a manifest.

ArrayRecord cannot append, and a file cut by a kill reads as empty without an error. So a stage
writes one shard per unit of work, to a temporary name, synced and renamed, and then lists it in
`NAME.manifest.json` with its record count and hash. Reading checks both: what is not listed does
not exist, what is listed must be there.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from cartridges_jax import files
from cartridges_jax.config import first_difference
from cartridges_jax.errors import InputError

_WRITER_OPTIONS = "group_size:1,zstd:3"  # every record can be read on its own


@dataclasses.dataclass
class ShardSet:
    """The shards of one stage in one folder.

    `inputs` says what they were made from (settings, hashes): a stage that is run again goes on
    only where they are equal.
    """

    folder: epath.Path
    name: str
    inputs: dict[str, Any]
    shards: dict[int, dict[str, Any]]

    @classmethod
    def open(cls, folder: epath.PathLike, name: str, inputs: dict[str, Any]) -> "ShardSet":
        """Opens a set for writing: an empty one, or one that was begun with the same inputs.

        Raises:
          InputError: if the folder holds a set made from other inputs.
        """
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        inputs = json.loads(json.dumps(inputs))
        if not cls._manifest(folder, name).exists():
            return cls(folder, name, inputs, {})
        existing = cls.read(folder, name)
        difference = first_difference(existing.inputs, inputs)
        if difference:
            raise InputError(
                f"{folder} holds {name} made with {difference}; choose another folder, or remove "
                f"{cls._manifest(folder, name).name} there to make them again"
            )
        return existing

    @classmethod
    def read(cls, folder: epath.PathLike, name: str) -> "ShardSet":
        """Opens a set for reading.

        Raises:
          InputError: if there is no manifest or it is damaged.
        """
        folder = files.local_path(folder)
        path = cls._manifest(folder, name)
        if not path.exists():
            raise InputError(f"there are no {name} in {folder} (no {path.name})")
        try:
            fields = json.loads(path.read_text())
            shards = {int(index): dict(shard) for index, shard in fields["shards"].items()}
            for shard in shards.values():
                if not (isinstance(shard["records"], int) and isinstance(shard["sha256"], str)):
                    raise TypeError("records and sha256 must be a number and a text")
            return cls(folder, name, dict(fields["inputs"]), shards)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error!r}); remove it to start over") from error

    @staticmethod
    def _manifest(folder: epath.Path, name: str) -> epath.Path:
        return folder / f"{name}.manifest.json"

    def path(self, index: int) -> epath.Path:
        return self.folder / f"{self.name}-{index:05d}.array_record"

    @property
    def num_records(self) -> int:
        return sum(shard["records"] for shard in self.shards.values())

    @property
    def fingerprint(self) -> str:
        """Hash over the contents of all shards, in order."""
        hashes = [self.shards[index]["sha256"] for index in sorted(self.shards)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def total(self, count: str) -> int:
        """Sums one of the counts, or lists of counts, that were given to `write`."""
        return int(sum(np.sum(shard.get(count, 0)) for shard in self.shards.values()))

    def write(self, index: int, records: Sequence[bytes], **facts: int | str | list[int]) -> None:
        """Writes shard `index` and lists it, with `facts` about what it holds.

        What another process has listed meanwhile stays listed. Time and memory grow with the
        shards that there are, since the whole manifest is written.

        Raises:
          InputError: if another process has begun the set anew from other inputs, or the disk is
            full.
        """
        path = self.path(index)
        temporary = files.temporary_name(path)
        with files.writing(path):
            writer = ArrayRecordWriter(os.fspath(temporary), _WRITER_OPTIONS)
            for record in records:
                writer.write(record)
            writer.close()
        shard = {"records": len(records), "sha256": _hash(records), **facts}
        manifest = self._manifest(self.folder, self.name)
        with files.locked(self.folder):
            if manifest.exists():
                listed = self.read(self.folder, self.name)
                difference = first_difference(listed.inputs, self.inputs)
                if difference:
                    temporary.unlink()
                    raise InputError(f"another process has begun {manifest} with {difference}")
                self.shards = listed.shards
            with files.writing(path):
                files.commit(temporary, path)
            self.shards[index] = shard
            shards = {str(i): self.shards[i] for i in sorted(self.shards)}
            files.write_json(manifest, {"inputs": self.inputs, "shards": shards}, indent=None)

    def records(self, index: int) -> list[bytes]:
        """Reads a shard.

        Raises:
          InputError: if it is missing, or not what was written.
        """
        path, shard = self.path(index), self.shards[index]
        if not path.exists():
            raise InputError(f"{path} is listed in the manifest but missing")
        try:
            reader = ArrayRecordReader(os.fspath(path))
            records = reader.read_all()
            reader.close()
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        if len(records) != shard["records"] or _hash(records) != shard["sha256"]:
            raise InputError(
                f"{path} is damaged: {len(records)} records, {shard['records']} expected, or their "
                "hash differs; remove the file's entry from the manifest to make it again"
            )
        return records


def _hash(records: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(len(record).to_bytes(8, "little"))
        digest.update(record)
    return digest.hexdigest()
