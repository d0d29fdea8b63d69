"""Bytes that a Pallas kernel moves between HBM and VMEM, counted from its grid and its blocks.

The pipeline of a kernel fetches an input's block where its index differs from that of the step
before, and writes an output's block where it is about to change. Nothing is run.
"""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from cartridges_jax.attention.mask import Rows
from cartridges_jax.attention.pallas_tpu.calls import Call, backward_calls, forward_call
from cartridges_jax.attention.pallas_tpu.plan import make_plan, prepare


def calls_of(
    rows: int, num_tokens: int, num_slots: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> dict[str, list[Call]]:
    """The calls "forward" and "backward" of unpacked rows behind a prefix, bfloat16, all zeros."""
    q = jnp.zeros((rows, num_tokens, num_heads, head_dim), jnp.bfloat16)
    k = jnp.zeros((rows, num_tokens, num_kv_heads, head_dim), jnp.bfloat16)
    slots = jnp.zeros((num_slots, num_kv_heads, head_dim), jnp.bfloat16)
    start = jnp.zeros((rows, num_tokens), jnp.int32)
    inputs = Rows(q, k, k, slots, slots, start, jnp.int32(num_slots))
    plans = [make_plan(inputs, 1.0, None, False, backward) for backward in (False, True)]
    forward, backward = [(plan, prepare(plan, inputs)) for plan in plans]
    number = jnp.zeros(backward[1].q.shape[:-1], jnp.float32)
    return {
        "forward": [forward_call(*forward)],
        "backward": backward_calls(*backward, backward[1].q, number, number),
    }


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
