"""Finished units of work: ArrayRecord files that are whole or not there, listed in a manifest.

ArrayRecord cannot append, and a file cut by a kill reads as empty without an error. So a stage
writes each unit to a temporary name, syncs and renames it, and then lists it by one more line of
`NAME.manifest.jsonl`, with its record count and hash. When many units lie in files of their own
they are packed into one. Reading checks count and hash: what is not listed does not exist, what is
listed must be there. Files are opened as they are needed, a few at a time; the cost of a unit does
not grow with the units that there are.
"""

import bisect
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import uuid
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from cartridges_jax import files
from cartridges_jax.config import digest, first_difference
from cartridges_jax.errors import InputError
from cartridges_jax.metrics import progress
from cartridges_jax.record_files import Readers, hash_of, write_file

PACK_RECORDS, PACK_UNITS = 1024, 256  # so many in files of their own become one file


class _Place(NamedTuple):
    """Where the records of a unit lie."""

    file: str
    start: int
    is_own: bool  # the file is of this unit alone


class ShardSet:
    """The units of one stage in one folder.

    Attributes:
      folder: of the files.
      name: what they begin with.
      inputs: what they were made from (settings, hashes): a stage that is run again goes on only
        where they are equal.
      units: what the manifest says of each unit, by its index: `records`, `sha256` and the facts
        that were given to `write`.
    """

    def __init__(self, folder: epath.Path, name: str, inputs: dict[str, Any]):
        """Makes an empty set; most callers want `open` or `read`."""
        self.folder, self.name, self.inputs = folder, name, inputs
        self.units: dict[int, dict[str, Any]] = {}
        self.num_records = 0
        self._places: dict[int, _Place] = {}
        self._own_files: dict[int, int] = {}  # records of the units that are not packed
        self._unpackable: set[int] = set()
        self._packs = 0
        self._id = ""  # of the manifest: another one of the same name is another set
        self._listed = 0  # bytes of the manifest that are in this object
        self._readers = Readers()

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
        if not cls.exists(folder, name):
            return cls(folder, name, inputs)
        existing = cls(folder, name, {})
        existing.refresh()
        if not existing._listed:
            return cls(folder, name, inputs)
        difference = first_difference(existing.inputs, inputs)
        if difference:
            raise InputError(
                f"{folder} holds {name} made with {difference}; choose another folder, or remove "
                f"{existing._manifest.name} there to make them again"
            )
        with files.locked(folder):
            existing.refresh()
            listed = {place.file for place in existing._places.values()}
            ours = re.compile(rf"{re.escape(name)}-(\d+-[0-9a-f]{{8}}|pack-\d+)\.array_record")
            for path in folder.glob(f"{name}-*.array_record"):  # of a run that was killed
                if ours.fullmatch(path.name) and path.name not in listed:
                    path.unlink(missing_ok=True)
        return existing

    @classmethod
    def read(cls, folder: epath.PathLike, name: str) -> "ShardSet":
        """Opens a set for reading.

        Raises:
          InputError: if there is no manifest or it is damaged.
        """
        found = cls(files.local_path(folder), name, {})
        if cls.exists(found.folder, name):
            found.refresh()
        if not found._listed:
            raise InputError(f"there are no {name} in {folder} (no {found._manifest.name})")
        return found

    @staticmethod
    def exists(folder: epath.PathLike, name: str) -> bool:
        """Whether a folder holds a set of this name.

        Raises:
          InputError: if an earlier version made it, which had another manifest.
        """
        manifest = epath.Path(folder) / f"{name}.manifest.jsonl"
        older = manifest.with_suffix(".json")
        if older.exists() and not manifest.exists():
            raise InputError(
                f"{older} is of an earlier version; choose another folder, or remove {older.name} "
                f"to make the {name} again"
            )
        return manifest.exists()

    @property
    def _manifest(self) -> epath.Path:
        return self.folder / f"{self.name}.manifest.jsonl"

    def _own_file(self, index: int, sha256: str) -> epath.Path:
        """A unit's own file; another content has another name, so none is ever written over."""
        return self.folder / f"{self.name}-{index:05d}-{sha256[:8]}.array_record"

    def path(self, index: int) -> epath.Path:
        """The file that holds a unit."""
        return self.folder / self._places[index].file

    @property
    def fingerprint(self) -> str:
        """Hash over the contents of all units, in order; however they are packed."""
        hashes = [self.units[index]["sha256"] for index in sorted(self.units)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def total(self, count: str) -> int:
        """Sums one of the counts, or lists of counts, that were given to `write`."""
        return int(sum(np.sum(unit.get(count, 0)) for unit in self.units.values()))

    # ---- writing

    def write(self, index: int, records: Sequence[bytes], **facts: int | str | list[int]) -> None:
        """Writes unit `index` and lists it, with `facts` about what it holds.

        What another process has listed meanwhile stays listed, this unit too: it is written again
        only where it is of another `source`, one of the facts.

        Raises:
          InputError: if another process has begun the set anew from other inputs, or the disk is
            full.
        """
        unit = {"unit": index, "records": len(records), "sha256": hash_of(records), **facts}
        path = self._own_file(index, unit["sha256"])
        if records:
            write_file(path, records, commit=False)
        with files.locked(self.folder):
            try:
                self.refresh()
                before = self.units.get(index)
                if before is not None and before.get("source") == facts.get("source"):
                    return
                with files.writing(path):
                    if records:
                        files.commit(files.temporary_name(path), path)
                replaced = self._places.get(index)
                self._append(unit)
            finally:
                files.temporary_name(path).unlink(missing_ok=True)
            if replaced is not None and replaced.is_own and replaced.file != path.name:
                (self.folder / replaced.file).unlink(missing_ok=True)
            own = [n for i, n in self._own_files.items() if i not in self._unpackable]
            if len(own) >= PACK_UNITS or sum(own) >= PACK_RECORDS:
                self._pack()

    def _pack(self) -> None:
        """Puts the units that lie in files of their own into one file."""
        indices, found = [], []
        for index in sorted(self._own_files.keys() - self._unpackable):
            try:
                found.append(self.records(index))
                indices.append(index)
            except InputError:  # told when it is read; it must not keep others from being written
                self._unpackable.add(index)
        own = [self.path(index) for index in indices]
        path = self.folder / f"{self.name}-pack-{self._packs:05d}.array_record"
        write_file(path, list(itertools.chain.from_iterable(found)))
        starts = itertools.accumulate(map(len, found), initial=0)
        self._append({"pack": path.name, "units": list(zip(indices, starts, strict=False))})
        for file in own:
            file.unlink(missing_ok=True)

    def _append(self, entry: dict[str, Any]) -> None:
        """Adds a line to the manifest, whole or not at all; the folder is locked."""
        lines = [entry]
        if not self._listed:
            self._id = uuid.uuid4().hex
            lines = [{"id": self._id}, {"inputs": self.inputs}, entry]
        data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        # Without a buffer: what a full disk did not take must not be written by closing the file.
        path = pathlib.Path(self._manifest)
        with files.writing(self._manifest), path.open("ab", buffering=0) as file:
            file.truncate(self._listed)  # what a killed process has not finished
            try:
                done = 0
                while done < len(data):
                    done += file.write(data[done:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._listed)
                raise
        self._take(entry)
        self._listed += len(data)

    # ---- reading

    def refresh(self) -> None:
        """Reads what the manifest says beyond what is known.

        Raises:
          InputError: if it is damaged, or is another one than before.
        """
        if not self._manifest.exists():
            if self._listed:
                raise InputError(f"{self._manifest} has been removed by another process")
            return
        try:
            with self._manifest.open("rb") as file:
                if not self._read_head(file):
                    return
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # a killed process was writing it
                    self._take(json.loads(line))
                    self._listed += len(line)
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            raise InputError(
                f"{self._manifest} is damaged ({error!r}); remove it to start over"
            ) from error

    def _read_head(self, file: IO[bytes]) -> bool:
        """Puts the file behind what is known; False if a killed process had just begun it."""
        first = file.readline()
        known = self._listed and json.loads(first)["id"] == self._id
        if known:
            file.seek(self._listed)
            return True
        second = file.readline()
        if not second.endswith(b"\n"):
            return False
        inputs = dict(json.loads(second)["inputs"])
        difference = first_difference(inputs, self.inputs) if self.inputs else None
        if self._listed or difference:
            raise InputError(
                f"another process has begun {self._manifest} with "
                f"{difference or 'the same inputs'}; start again"
            )
        self.inputs, self._id, self._listed = inputs, json.loads(first)["id"], file.tell()
        return True

    def _take(self, entry: dict[str, Any]) -> None:
        """Takes a line of the manifest."""
        if "pack" in entry:
            for index, start in entry["units"]:
                self._places[int(index)] = _Place(str(entry["pack"]), int(start), False)
                self._own_files.pop(int(index), None)
            self._packs += 1
            return
        index, records = entry["unit"], entry["records"]
        if type(index) is not int or type(records) is not int:
            raise TypeError("unit and records must be numbers")
        if not isinstance(entry["sha256"], str):
            raise TypeError("sha256 must be a text")
        self.num_records += records - self.units.get(index, {"records": 0})["records"]
        self.units[index] = {key: value for key, value in entry.items() if key != "unit"}
        self._places[index] = _Place(self._own_file(index, entry["sha256"]).name, 0, True)
        self._own_files.pop(index, None)
        if records:
            self._own_files[index] = records

    def records(self, index: int) -> list[bytes]:
        """Reads a unit.

        Raises:
          InputError: if it is missing, or not what was written.
        """
        unit = self.units[index]
        records = self.rows(index, 0, unit["records"]) if unit["records"] else []
        if len(records) != unit["records"] or hash_of(records) != unit["sha256"]:
            raise InputError(
                f"{self.path(index)} is damaged: {len(records)} records of unit {index}, "
                f"{unit['records']} expected, or their hash differs; remove {self._manifest.name} "
                "to make all again"
            )
        return records

    def check(self) -> None:
        """Reads all units once; not again for as long as their files stay as they are.

        What was found is remembered in the user's cache by the files' sizes and dates.

        Raises:
          InputError: if a unit is missing, or not what was written.
        """
        names = sorted(
            {place.file for i, place in self._places.items() if self.units[i]["records"]}
        )
        try:
            stats = [pathlib.Path(self.folder / name).stat() for name in names]
        except FileNotFoundError as error:
            raise InputError(f"{error.filename} is listed in the manifest but missing") from error
        seen = [[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, stats, strict=True)]
        known = files.cache_folder("checked")
        key = digest([os.fspath(self.folder.resolve()), self.fingerprint, seen])
        if known is not None and (known / key).exists():
            return
        bar = progress(len(self.units), "check", "unit")
        for index in sorted(self.units):
            self.records(index)
            bar.update()
        bar.close()
        if known is not None:
            with contextlib.suppress(OSError, InputError):  # it only costs the next start the time
                files.write_bytes(known / key, b"")

    def rows(self, index: int, first: int, last: int) -> list[bytes]:
        """Reads some records of a unit, without a look at its hash; errors as in `records`."""
        for refreshes in (True, False):
            place = self._places[index]
            path = self.folder / place.file
            try:
                return self._readers.read(path, place.start + first, place.start + last)
            except FileNotFoundError as error:
                if not refreshes:
                    raise InputError(f"{path} is listed in the manifest but missing") from error
                self.refresh()  # another process may have packed it
            except (RuntimeError, ValueError, IndexError) as error:
                raise InputError(f"{path} is damaged: {error}") from error
        raise AssertionError


class Records:
    """All records of a set in the order of its units, one by one: a source for Grain."""

    def __init__(self, shards: ShardSet):
        """Takes the records that are listed now."""
        self._shards = shards
        self._indices = [i for i in sorted(shards.units) if shards.units[i]["records"]]
        counts = (shards.units[i]["records"] for i in self._indices)
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        at = bisect.bisect_right(self._ends, int(index))
        row = int(index) - (self._ends[at - 1] if at else 0)
        [record] = self._shards.rows(self._indices[at], row, row + 1)
        return record
