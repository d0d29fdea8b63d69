"""What is static about a call of the kernels, and its arrays as the kernels take them."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from cartridges_jax.attention.mask import Rows
from cartridges_jax.shapes import round_up
from cartridges_jax.sharding import on_tpu

LANES = 128
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a chip's core allows; `experiments.kernel_memory` has the VMEM in use by shape."""

    vmem: int  # bytes that a kernel may have; beyond it Mosaic refuses
    folded_queries: int  # group * queries of a block; more only where a group alone has more
    keys: int  # of a block, for heads of up to 128; fewer for larger heads and groups


# By the VMEM of a core. Blocks are the same wherever they fit: a larger core keeps more keys, so
# that longer rows and prefixes are still read once and need one backward kernel.
SIZES = {
    128 * MIB: Sizes(112 * MIB, 1024, 512),  # v5e, v6e
    64 * MIB: Sizes(56 * MIB, 1024, 512),  # v5p, tpu7x
    16 * MIB: Sizes(14 * MIB, 512, 256),  # v4
}


def sizes_of_chip() -> Sizes:
    """Sizes for the chip that is compiled for; away from TPU those that all but v4 can take."""
    if on_tpu():
        vmem = pltpu.get_tpu_info().vmem_capacity_bytes
        return SIZES[max((size for size in SIZES if size <= vmem), default=16 * MIB)]
    return SIZES[64 * MIB]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Most queries, row keys and prefix keys of the blocks that a step computes."""

    queries: int
    row_keys: int
    prefix_keys: int


def default_blocks(sizes: Sizes, group: int, head_dim: int) -> Blocks:
    """Larger heads, and groups so large that few queries are many when folded, take fewer keys."""
    queries = max(LANES, sizes.folded_queries // group // LANES * LANES)
    smaller = max(head_dim / LANES, 1) * max(group * queries / sizes.folded_queries, 1)
    keys = max(LANES, int(sizes.keys / smaller) // LANES * LANES)
    return Blocks(queries, keys, keys)


def _block(length: int, most: int) -> int:
    """The largest block, in whole lanes, whose padding is an eighth of `length` at most."""
    fitting = (b for b in range(most, LANES, -LANES) if round_up(length, b) <= 1.125 * length)
    return next(fitting, LANES)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything static about a pass, after padding."""

    B: int
    C: int  # groups of rows, each with a prefix of its own
    T: int  # queries, in whole blocks
    K: int
    G: int
    H: int
    P: int  # slots, in whole chunks
    S: int  # keys of a row, in whole chunks; at least T
    chunks: int  # parts of prefix and row that lie in VMEM one after the other
    blocks: Blocks
    vmem: int
    scale: float
    interpret: bool

    @property
    def group_rows(self) -> int:
        return self.B // self.C

    @property
    def query_blocks(self) -> int:
        return self.T // self.blocks.queries

    @property
    def folded(self) -> int:
        return self.G * self.blocks.queries


def _chunks(
    vmem: int, blocks: Blocks, slots: int, keys: int, bytes_per_slot: int, bytes_per_key: int
) -> tuple[int, int, int]:
    """The fewest chunks of which one fits `vmem`; slots and keys padded to whole chunks.

    Where not even a block of each fits, chunks are of one block each.
    """
    prefix_blocks, row_blocks = -(-slots // blocks.prefix_keys), -(-keys // blocks.row_keys)

    def chunk(count: int) -> tuple[int, int]:
        in_prefix, in_row = -(-prefix_blocks // count), -(-row_blocks // count)
        return in_prefix * blocks.prefix_keys, in_row * blocks.row_keys

    def fits(count: int) -> bool:
        p, s = chunk(count)
        return p * bytes_per_slot + s * bytes_per_key <= vmem

    most = max(prefix_blocks, row_blocks)
    count = next(filter(fits, range(1, most)), most)
    p, s = chunk(count)
    return count, count * p, count * s


def make_plan(
    rows: Rows, scale: float, blocks: Blocks | None, interpret: bool, backward: bool
) -> Plan:
    """Chooses blocks, of at most `blocks` or the chip's own, and chunks, for one of the passes."""
    sizes = sizes_of_chip()
    (B, T, N, H), K = rows.q.shape, rows.k.shape[2]
    G, itemsize, width = N // K, rows.q.dtype.itemsize, round_up(H, LANES)
    most = blocks or default_blocks(sizes, G, H)
    C = rows.prefix_k.shape[0] if rows.prefix_k.ndim == 4 else 1
    tokens, slots = max(T, 1), max(rows.prefix_k.shape[-3], 1)  # no empty arrays
    bq = _block(tokens, most.queries)
    T = round_up(tokens, bq)
    fitted = Blocks(bq, _block(T, most.row_keys), _block(slots, most.prefix_keys))
    # Bytes of VMEM. Blocks that the pipeline moves are there twice: keys and values, of queries
    # and what belongs to them, and gradients as they are handed out; sums in float32 are there
    # once. A step's own arrays [keys, group * queries] are in float32, two or three at a time.
    folded = G * bq
    scores = 3 * 4 * folded * max(fitted.row_keys, fitted.prefix_keys)
    if backward:
        of_query = width * (2 * (2 * itemsize + 4) + 4)  # q, d_out, dq, and dq's sum
        of_slot = 2 * width * (2 * itemsize + 2 * 4)
        of_key = 2 * width * (2 * itemsize + 2 * itemsize + 4)
    else:
        of_query = width * (2 * 2 * itemsize + 4)  # q, out, and its sum
        of_slot = of_key = 2 * width * 2 * itemsize
    left = sizes.vmem - scores - folded * of_query
    chunks, P, S = _chunks(left, fitted, slots, T, of_slot, of_key)
    return Plan(
        B=B, C=C, T=T, K=K, G=G, H=H, P=P, S=S, chunks=chunks, blocks=fitted, vmem=sizes.vmem,
        scale=scale, interpret=interpret,
    )  # fmt: skip


def pad(x: jax.Array, axis: int, size: int) -> jax.Array:
    if x.shape[axis] == size:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arrays as the kernels take them: heads before tokens, padded to whole blocks."""

    q: jax.Array  # [B, K, G, T, H]
    k: jax.Array  # [B, K, S, H]
    v: jax.Array
    prefix_k: jax.Array  # [C, K, P, H]
    prefix_v: jax.Array
    segment_start: jax.Array  # [B, 1, T] int32
    # First key that a query block sees [B, T / bq]; live slots [B].
    scalars: tuple[jax.Array, jax.Array]


def prepare(plan: Plan, rows: Rows) -> Inputs:
    """Turns and pads the arrays."""
    q, k, v, prefix_k, prefix_v, segment_start, prefix_length = rows
    B, T, K, G, H = plan.B, plan.T, plan.K, plan.G, plan.H
    tokens = q.shape[1]
    # A padding query sees itself alone: its row of weights is finite and its gradient zero.
    own = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    start = jnp.where(own < tokens, pad(segment_start, 1, T), own)
    first = start.reshape(B, plan.query_blocks, plan.blocks.queries).min(-1)
    of_groups = jnp.broadcast_to(jnp.asarray(prefix_length, jnp.int32), (plan.C,))
    length = jnp.repeat(of_groups, plan.group_rows, total_repeat_length=B)

    def heads_first(x: jax.Array, size: int) -> jax.Array:
        return pad(jnp.moveaxis(x, -2, -3), x.ndim - 2, size)

    return Inputs(
        q=pad(q.reshape(B, tokens, K, G, H).transpose(0, 2, 3, 1, 4), 3, T),
        k=heads_first(k, plan.S),
        v=heads_first(v, plan.S),
        prefix_k=heads_first(prefix_k, plan.P).reshape(plan.C, K, plan.P, H),
        prefix_v=heads_first(prefix_v, plan.P).reshape(plan.C, K, plan.P, H),
        segment_start=start[:, None],
        scalars=(first, length),
    )
