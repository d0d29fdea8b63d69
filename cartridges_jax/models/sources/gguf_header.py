"""The header of a GGUF file: its metadata and where its tensors lie.

A file from anywhere is read, so every count, length and offset is held to the size of the file
before it is believed: memory is bounded by a small multiple of that size. (The `gguf` package's own
reader loops over the counts of the header as they stand.) Format: version 2 and 3, little-endian,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
import itertools
import math
import os
import struct
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from cartridges_jax.errors import InputError

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_SMALLEST_ENTRY = 13  # bytes of a key of no letters, its type and a value; of a tensor more
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32  # of tensors, where the header names none


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's blocks lie; `shape` has the axis first that runs slowest, as in numpy."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int  # in the file
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    fields: dict[str, Any]  # numbers, texts, and lists of either
    tensors: dict[str, StoredTensor]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads the header.

    Raises:
      InputError: if the file is no GGUF, is cut, or its header cannot be true.
    """
    try:
        data = np.memmap(path, mode="r")
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise InputError(f"{path} cannot be read as a GGUF file: {error}") from error
    try:
        return _Cursor(data).header()
    except (_DamagedError, struct.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a whole GGUF file: {error}") from error


class _DamagedError(Exception):
    """The header says something that cannot be."""


class _Cursor:
    """Reads one thing after another, never beyond the file."""

    def __init__(self, data: np.ndarray):
        self._data = data.data
        self._at = 0

    def header(self) -> Header:
        if bytes(self._take(4)) != b"GGUF":
            raise _DamagedError("it does not begin with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise _DamagedError(f"version {version} is not supported; 2 and 3 are (little-endian)")
        num_tensors, num_fields = self._count("tensors"), self._count("fields")
        fields = {}
        for _ in range(num_fields):
            key = self._text()
            fields[key] = self._value(self._type(), key)
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise _DamagedError(f"general.alignment is {alignment!r}")
        start = math.ceil(self._at / alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in infos:
            if name in tensors:
                raise _DamagedError(f"it has two tensors named {name!r}")
            tensors[name] = self._placed(name, shape, kind, start + offset)
        in_file = sorted(tensors.values(), key=lambda stored: stored.offset)
        for one, after in itertools.pairwise(in_file):
            if one.offset + one.num_bytes > after.offset:
                raise _DamagedError(f"its tensors {one.name} and {after.name} overlap")
        return Header(fields, tensors)

    def _placed(
        self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, offset: int
    ) -> StoredTensor:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise _DamagedError(f"{name} has rows of {shape[-1]}, not in blocks of {block}")
        num_bytes = math.prod(shape) // block * block_bytes
        if offset + num_bytes > len(self._data):
            raise _DamagedError(
                f"{name} ends at byte {offset + num_bytes} of {len(self._data)}; it may be cut"
            )
        return StoredTensor(name, shape, kind, offset, num_bytes)

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise _DamagedError(f"it ends within its header, at byte {len(self._data)}")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def _scalar(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, what: str) -> int:
        count = self._scalar("<Q")
        if count > len(self._data) // _SMALLEST_ENTRY:
            raise _DamagedError(f"it cannot hold the {count} {what} of its header")
        return count

    def _text(self) -> str:
        return bytes(self._take(self._scalar("<Q"))).decode("utf-8")

    def _type(self) -> GGUFValueType:
        number = self._scalar("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise _DamagedError(f"there is no type {number} of fields") from None

    def _value(self, kind: GGUFValueType, key: str) -> Any:
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind != GGUFValueType.ARRAY:
            return self._scalar(_SCALARS[kind])
        kind, count = self._type(), self._scalar("<Q")
        if kind == GGUFValueType.ARRAY:
            raise _DamagedError(f"{key} is a list of lists")
        if kind == GGUFValueType.STRING:
            if 8 * count > len(self._data) - self._at:
                raise _DamagedError(f"it cannot hold the {count} texts of {key}")
            return [self._text() for _ in range(count)]
        form = _SCALARS[kind]
        taken = self._take(min(count, 2**62) * struct.calcsize(form))
        return np.frombuffer(taken, form[1:].replace("?", "b1")).tolist()

    def _tensor_info(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._text()
        dimensions = self._scalar("<I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise _DamagedError(f"{name} has {dimensions} dimensions")
        sizes = [self._scalar("<Q") for _ in range(dimensions)]
        if not all(sizes):
            raise _DamagedError(f"{name} is empty: {sizes}")
        number = self._scalar("<I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise _DamagedError(f"{name} has the unknown quantization {number}") from None
        return name, tuple(reversed(sizes)), kind, self._scalar("<Q")
