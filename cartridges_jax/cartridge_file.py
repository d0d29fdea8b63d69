"""The `.cartridge` file: safetensors with `keys` and `values` [L, P, K, H] and a JSON header.

The header holds the format version, the number of frozen slots, the next position and the
provenance: the model (hashes of config, weights, tokenizer and chat template, rope), the corpus
(a hash per document), the data, the settings. Nothing in it is ever executed.
"""

import json
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from cartridges_jax import files
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.errors import InputError

FORMAT_VERSION = 1
FIELDS = {"format_version": int, "num_frozen": int, "next_position": int, "provenance": dict}
DTYPES = {"F32", "BF16", "F16"}
LAST_POSITION = 2**31 - 1  # positions are int32


def save(path: epath.Path, cartridge: Cartridge) -> None:
    """Writes the file whole or not at all."""
    header = {
        "format_version": FORMAT_VERSION,
        "num_frozen": cartridge.num_frozen,
        "next_position": cartridge.next_position,
        "provenance": cartridge.provenance,
    }
    tensors = {"keys": np.asarray(cartridge.keys), "values": np.asarray(cartridge.values)}
    data = safetensors.numpy.save(tensors, metadata={"cartridge": json.dumps(header)})
    files.write_bytes(path, data)


def read_header(path: epath.Path) -> dict[str, Any]:
    """Reads the header and the shape of the slots, without the slots.

    Returns:
      The header's fields, and `shape` [L, P, K, H] and `dtype`.

    Raises:
      InputError: if the file is missing, cut, or not a cartridge.
    """
    if not path.is_file():
        raise InputError(f"there is no cartridge file {path}")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            header = json.loads((file.metadata() or {})["cartridge"])
            shapes = [tuple(file.get_slice(name).get_shape()) for name in ("keys", "values")]
            dtypes = [file.get_slice(name).get_dtype() for name in ("keys", "values")]
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a whole cartridge file ({error}); it may be cut or of another format"
        ) from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is no JSON object")
    for name, kind in FIELDS.items():
        if not isinstance(header.get(name), kind):
            raise InputError(f"{path}: the header has no {name!r} of type {kind.__name__}")
    if header["format_version"] != FORMAT_VERSION:
        version = header["format_version"]
        raise InputError(f"{path} has format {version}; this program reads {FORMAT_VERSION}")
    if len(shapes[0]) != 4 or shapes[0] != shapes[1]:
        raise InputError(f"{path}: keys {shapes[0]} and values {shapes[1]} are not [L, P, K, H]")
    if not set(dtypes) <= DTYPES or len(set(dtypes)) > 1:
        raise InputError(f"{path}: keys and values are {dtypes}, not one of {sorted(DTYPES)}")
    slots, frozen, position = shapes[0][1], header["num_frozen"], header["next_position"]
    if not 0 <= frozen <= slots or not 0 <= position <= LAST_POSITION:
        raise InputError(
            f"{path}: {frozen} frozen of {slots} slots and the next position {position} cannot be; "
            f"a position is at most {LAST_POSITION}"
        )
    _check_provenance(path, header["provenance"])
    return header | {"shape": list(shapes[0]), "dtype": dtypes[0]}


def _check_provenance(path: epath.Path, provenance: dict[str, Any]) -> None:
    """Raises InputError where the story of a cartridge is not told as `train` tells it."""
    model, corpus = provenance.get("model", {}), provenance.get("corpus", [])
    names = ("name", "weights", "config", "tokenizer", "chat_template")
    of_model = isinstance(model, dict) and all(isinstance(model.get(n, ""), str) for n in names)
    of_corpus = isinstance(corpus, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(n), str) for n in ("name", "sha256"))
        for one in corpus
    )
    for name, is_right in (("model", of_model), ("corpus", of_corpus)):
        if not is_right:
            raise InputError(f"{path}: the header's provenance has a {name} of another form")


def load(path: epath.Path) -> Cartridge:
    """Reads a cartridge; `InputError` as `read_header`, or where a slot is not finite
    or the file does not say which model it belongs to.
    """
    header = read_header(path)
    with safetensors.safe_open(str(path), framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in ("keys", "values")}  # bfloat16 too
    for name, value in tensors.items():
        if not np.isfinite(value.astype(np.float32)).all():
            raise InputError(f"{path}: {name} holds values that are not finite")
    if not isinstance(header["provenance"].get("model"), dict):
        raise InputError(f"{path} does not say which model it belongs to")
    return Cartridge(
        jax.numpy.asarray(tensors["keys"]),
        jax.numpy.asarray(tensors["values"]),
        num_frozen=header["num_frozen"],
        next_position=header["next_position"],
        provenance=header["provenance"],
    )
