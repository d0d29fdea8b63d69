"""The hash of a model's weights, which decides whether a cartridge belongs to it.

It runs over sorted (name, dtype, shape, bytes) of the tensors as the folder stores them, whatever
files hold them. Hashing reads every byte (about 1 GB/s), so the result is kept in the user's cache
folder for as long as the files' sizes and dates stay as they are.
"""

import hashlib
import os
import pathlib

import numpy as np
from etils import epath

from cartridges_jax import files
from cartridges_jax.config import digest
from cartridges_jax.metrics import progress
from cartridges_jax.models.hf import tensor_handles, weight_files


def weights_fingerprint(folder: epath.PathLike) -> str:
    """Returns the hash as 64 hexadecimal digits; from the cache if it was computed before."""
    folder = epath.Path(folder)
    paths = [pathlib.Path(path).resolve() for path in weight_files(folder)]
    stats = [path.stat() for path in paths]
    names = map(os.fspath, paths)
    key = digest([[n, s.st_size, s.st_mtime_ns] for n, s in zip(names, stats, strict=True)])
    cached = files.cache_folder() / "fingerprints" / key
    try:
        known = cached.read_text().strip()
    except OSError:
        known = ""
    if len(known) == 64:
        return known
    found = _hash(folder, sum(stat.st_size for stat in stats))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(cached, found.encode())
    except OSError:
        pass  # a cache that cannot be written only costs the next command the time
    return found


def _hash(folder: epath.Path, num_bytes: int) -> str:
    digest_of_all = hashlib.sha256()
    handles = tensor_handles(folder)
    bar = progress(num_bytes, "hash", "B", scaled=True)
    for name in sorted(handles):
        value = handles[name].get_tensor(name)  # one tensor at a time
        digest_of_all.update(f"{name} {value.dtype} {value.shape}".encode())
        digest_of_all.update(np.ascontiguousarray(value).view(np.uint8).data)
        bar.update(value.nbytes)
    bar.close()
    return digest_of_all.hexdigest()
