"""What is static about a call of the kernels, and its arrays as the kernels take them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

LANES = 128
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the VMEM of a chip's core allows; `experiments.kernel_memory` has the use by shape.

    A step computes some six float32 arrays of [keys, folded_queries] at a time. The rest of the
    limit holds the kept keys with their gradients and double-buffered blocks of queries.
    """

    vmem_limit: int  # bytes; beyond it Mosaic refuses a kernel
    kept: int  # bytes of it for keys, values and their gradients
    folded_queries: int  # group * queries of a block; more only where a group alone has more
    keys: int  # of a block, for heads of up to 128; larger heads halve it


# By the VMEM of a core. Blocks are the same wherever they fit: a larger core keeps more keys, so
# that longer rows and prefixes are still read once and need one backward kernel.
SIZES = {
    128 * MIB: Sizes(112 * MIB, 84 * MIB, 1024, 512),  # v5e, v6e
    64 * MIB: Sizes(56 * MIB, 36 * MIB, 1024, 512),  # v5p, tpu7x
    16 * MIB: Sizes(14 * MIB, 6 * MIB, 512, 256),  # v4
}


def sizes_of_chip() -> Sizes:
    """Sizes for the chip that is compiled for; away from TPU those that all but v4 can take."""
    if pltpu.is_tpu_device():
        vmem = pltpu.get_tpu_info().vmem_capacity_bytes
        return SIZES[max((size for size in SIZES if size <= vmem), default=16 * MIB)]
    return SIZES[64 * MIB]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the blocks that a step computes; each divides the padded length."""

    queries: int
    row_keys: int
    prefix_keys: int


def _largest_block(length: int, limit: int) -> int:
    """The largest multiple of 128 up to `limit` that divides `length`, itself a multiple."""
    tried = range(max(limit // LANES, 1), 0, -1)
    return next(n * LANES for n in tried if length % (n * LANES) == 0)


def default_blocks(
    sizes: Sizes, num_queries: int, num_slots: int, group: int, head_dim: int
) -> Blocks:
    """Chooses block sizes for one device's padded lengths.

    Heads of 256 halve the keys, and so do groups so large that few queries are many when folded.
    """
    keys = sizes.keys if head_dim <= 128 else sizes.keys // 2
    keys = min(keys, sizes.keys * sizes.folded_queries // (group * LANES))
    return Blocks(
        _largest_block(num_queries, sizes.folded_queries // group),
        _largest_block(num_queries, keys),
        _largest_block(num_slots, keys),
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about a call, after padding."""

    B: int
    T: int
    K: int
    G: int
    H: int
    itemsize: int
    sizes: Sizes
    blocks: Blocks
    scale: float
    shared: bool  # one prefix for all rows
    interpret: bool

    @property
    def query_blocks(self) -> int:
        return self.T // self.blocks.queries

    @property
    def folded(self) -> int:
        return self.G * self.blocks.queries


def pad(x: jax.Array, axis: int, size: int) -> jax.Array:
    if x.shape[axis] == size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arrays as the kernels take them: heads before tokens, padded to whole lanes."""

    q: jax.Array  # [B, K, G, T, H]
    k: jax.Array  # [B, K, T, H]
    v: jax.Array
    prefix_k: jax.Array  # [1 or B, K, P, H]
    prefix_v: jax.Array
    segment_start: jax.Array  # [B, 1, T] int32
    scalars: tuple[jax.Array, jax.Array]  # first key that a query block sees [B, T / bq], P's [B]


def prepare(
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length, scale, blocks=None, interpret=False
) -> tuple[Plan, Inputs]:
    """What the calls are made of (`calls.py`); arguments as of `pallas_forward`."""
    sizes = sizes_of_chip()
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    padded = _round_up(T, LANES)
    slots = max(LANES, _round_up(prefix_k.shape[-3], LANES))  # no empty arrays
    blocks = blocks or default_blocks(sizes, padded, slots, G, H)
    shared = prefix_k.ndim == 3
    plan = Plan(B, padded, K, G, H, q.dtype.itemsize, sizes, blocks, scale, shared, interpret)
    # A padding query sees itself alone: its row of weights is finite and its gradient zero.
    own = jnp.broadcast_to(jnp.arange(padded, dtype=jnp.int32), (B, padded))
    start = jnp.where(own < T, pad(segment_start, 1, padded), own)
    first = start.reshape(B, plan.query_blocks, blocks.queries).min(-1)
    length = jnp.broadcast_to(jnp.asarray(prefix_length, jnp.int32), (B,))

    def heads_first(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, -2, -3)

    def slots_first(x: jax.Array) -> jax.Array:
        x = pad(heads_first(x), -2 % x.ndim, slots)
        return x[None] if shared else x

    folded = q.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    arrays = Inputs(
        pad(folded, 3, padded),
        pad(heads_first(k), 2, padded),
        pad(heads_first(v), 2, padded),
        slots_first(prefix_k),
        slots_first(prefix_v),
        start[:, None],
        (first, length),
    )
    return plan, arrays
