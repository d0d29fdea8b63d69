"""The hash of a model's weights, which decides whether a cartridge belongs to it.

It runs over sorted (name, dtype, shape, bytes) of the tensors as they are stored, whatever files
hold them. Hashing reads every byte (about 1 GB/s), so the result is kept in the user's cache folder
for as long as the files' sizes and dates stay as they are. What is not finite has no hash: such
weights are refused before they are used.
"""

import contextlib
import hashlib
import pathlib

import numpy as np

from cartridges_jax import files
from cartridges_jax.config import digest
from cartridges_jax.errors import InputError
from cartridges_jax.metrics import progress
from cartridges_jax.models.sources.base import ModelSource, blocks_of


def weights_fingerprint(source: ModelSource) -> str:
    """Returns the hash as 64 hexadecimal digits; from the cache if it was computed before.

    Raises:
      InputError: if a tensor holds values that are not finite.
    """
    paths = [pathlib.Path(path).resolve() for path in source.weight_files()]
    stats = [path.stat() for path in paths]
    key = digest([[str(p), s.st_size, s.st_mtime_ns] for p, s in zip(paths, stats, strict=True)])
    folder = files.cache_folder("fingerprints")
    if folder is None:
        return _hash(source, sum(stat.st_size for stat in stats))
    cached = folder / key
    known = cached.read_text().strip() if cached.exists() else ""
    if len(known) == 64:
        return known
    found = _hash(source, sum(stat.st_size for stat in stats))
    with contextlib.suppress(OSError, InputError):  # it only costs the next command the time
        files.write_bytes(cached, found.encode())
    return found


def _hash(source: ModelSource, num_bytes: int) -> str:
    digest_of_all = hashlib.sha256()
    for name, tensor in sorted(source.tensors().items()):
        if not all(np.isfinite(block).all() for block in blocks_of(tensor)):
            raise InputError(f"{source.where}: {name} holds values that are not finite")
    bar = progress(num_bytes, "hash", "B", scaled=True)
    for what, data in source.stored():
        digest_of_all.update(what.encode())
        digest_of_all.update(data)
        bar.update(len(data))
    bar.close()
    return digest_of_all.hexdigest()
