"""Bytes that a Pallas kernel moves between HBM and VMEM, counted from its grid and its blocks.

The pipeline of a kernel fetches an input's block where its index differs from that of the step
before, and writes an output's block where it is about to change. Nothing is run.
"""

import itertools
import math
from typing import Any

import numpy as np

from cartridges_jax.attention.pallas_tpu.calls import Call


def _changes(call: Call, spec: Any, scalars: tuple[np.ndarray, ...]) -> int:
    """How often a block of `spec` is another than in the step before, the first included."""
    count, last = 0, None
    for ids in itertools.product(*map(range, call.grid)):  # the last axis is the fastest
        index = tuple(int(i) for i in spec.index_map(*ids, *scalars))
        count += index != last
        last = index
    return count


def _moved(call: Call, arrays: Any) -> int:
    scalars = tuple(np.asarray(x) for x in call.scalars)
    return sum(
        _changes(call, spec, scalars) * math.prod(spec.block_shape) * x.dtype.itemsize
        for x, spec in arrays
    )


def bytes_read(call: Call) -> int:
    """Bytes of all inputs' blocks that are fetched; the call's scalars must be concrete."""
    return _moved(call, call.inputs)


def bytes_written(call: Call) -> int:
    """Bytes of all outputs' blocks that are written."""
    return _moved(call, call.outputs)
