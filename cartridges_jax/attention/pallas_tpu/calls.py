"""Which blocks of which array lie in VMEM when: grids and block maps of the kernels.

A `Call` can be run, or counted (`planning.kernel_traffic`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cartridges_jax.attention.pallas_tpu.kernels import backward_kernel, forward_kernel
from cartridges_jax.attention.pallas_tpu.plan import Inputs, Plan


@dataclasses.dataclass(frozen=True)
class Call:
    """A kernel with its grid, blocks and arrays: to be run, or to be counted."""

    kernel: Any
    grid: tuple[int, ...]
    scalars: tuple[jax.Array, ...]
    inputs: tuple[tuple[jax.Array, pl.BlockSpec], ...]
    outputs: tuple[tuple[jax.ShapeDtypeStruct, pl.BlockSpec], ...]
    scratch: tuple[tuple[int, ...], ...]  # float32
    products: int  # matrix products of a block
    plan: Plan

    def run(self) -> Any:
        plan = self.plan
        # Kv heads may run beside each other; a shared prefix's gradient is a sum over the rest.
        semantics: Any = ("parallel",) + ("arbitrary",) * (len(self.grid) - 1)
        slots = self.inputs[3][0].shape[2]
        pairs = plan.B * plan.K * plan.G * plan.T * (slots + plan.T // 2)
        everything = [x for x, _ in (*self.inputs, *self.outputs)]
        return pl.pallas_call(
            self.kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self.scalars),
                grid=self.grid,
                in_specs=[spec for _, spec in self.inputs],
                out_specs=[spec for _, spec in self.outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in self.scratch],
            ),
            out_shape=[shape for shape, _ in self.outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=semantics, vmem_limit_bytes=plan.sizes.vmem_limit
            ),
            # All causal pairs of unpacked rows, and of all keys where they come in chunks.
            cost_estimate=pl.CostEstimate(
                flops=2 * self.products * pairs * plan.H,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in everything),
            ),
            interpret=plan.interpret,
            name=self.kernel.func.__name__,
        )(*self.scalars, *(x for x, _ in self.inputs))


def _chunk(length: int, block: int, bytes_per_key: int, budget: int) -> int:
    """The most keys, in whole blocks that divide `length`, that fit the budget; one at least."""
    blocks = length // block
    fitting = [n for n in range(1, blocks + 1) if blocks % n == 0]
    return block * max([n for n in fitting if n * block * bytes_per_key <= budget], default=1)


def forward_call(plan: Plan, x: Inputs) -> Call:
    """The forward kernel: values [B, K, G, T, H] and log-sum-exp [B, K, G, T]."""
    bq, G, H = plan.blocks.queries, plan.G, plan.H
    per_key = 2 * 2 * H * plan.itemsize  # keys and values, double-buffered
    slots = _chunk(x.prefix_k.shape[2], plan.blocks.prefix_keys, per_key, plan.sizes.kept // 2)
    keys = _chunk(plan.T, plan.blocks.row_keys, per_key, plan.sizes.kept // 2)
    prefix_chunks, row_chunks = x.prefix_k.shape[2] // slots, plan.T // keys

    def row_chunk(h, b, i, c, first, length):
        last = ((i + 1) * bq - 1) // keys
        return b, h, jnp.clip(c - prefix_chunks, first[b, i] // keys, last), 0

    def prefix_chunk(h, b, i, c, first, length):
        live = jnp.maximum((length[b] + slots - 1) // slots - 1, 0)
        return 0 if plan.shared else b, h, jnp.minimum(c, live), 0

    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, b, i, c, *_: (b, h, 0, i, 0))
    row = pl.BlockSpec((1, 1, keys, H), row_chunk)
    prefix = pl.BlockSpec((1, 1, slots, H), prefix_chunk)
    start = pl.BlockSpec((1, 1, bq), lambda h, b, i, c, *_: (b, 0, i))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, b, i, c, *_: (b, h, 0, i))
    return Call(
        functools.partial(forward_kernel, plan=plan, prefix_chunks=prefix_chunks),
        (plan.K, plan.B, plan.query_blocks, prefix_chunks + row_chunks),
        x.scalars,
        (
            (x.q, query),
            (x.k, row),
            (x.v, row),
            (x.prefix_k, prefix),
            (x.prefix_v, prefix),
            (x.segment_start, start),
        ),
        (
            (jax.ShapeDtypeStruct(x.q.shape, x.q.dtype), query),
            (jax.ShapeDtypeStruct(x.q.shape[:-1], jnp.float32), number),
        ),
        ((1, plan.folded), (1, plan.folded), (H, plan.folded)),
        2,
        plan,
    )


def backward_calls(
    plan: Plan, x: Inputs, d_out: Any, lse: Any, delta: Any
) -> list[tuple[tuple[str, ...], Call]]:
    """The backward kernel, for as many chunks of keys as VMEM asks for: one for usual sizes.

    Each call gives dq [B, K, G, T, H], whose sum is wanted, and the gradients of its chunks of the
    row's keys and values and of the prefix's; which of these it has is said beside it.
    """
    bq, G, H, P = plan.blocks.queries, plan.G, plan.H, x.prefix_k.shape[2]
    # Double-buffered keys and values, and their gradients: of the row in float32 and as handed
    # out, of the prefix in float32, double-buffered.
    per_slot = 2 * H * (2 * plan.itemsize + 2 * 4)
    per_key = 2 * H * (2 * plan.itemsize + 4 + 2 * plan.itemsize)
    together = P * per_slot + plan.T * per_key <= plan.sizes.kept
    budget = plan.sizes.kept // 2
    slots = P if together else _chunk(P, plan.blocks.prefix_keys, per_slot, budget)
    keys = plan.T if together else _chunk(plan.T, plan.blocks.row_keys, per_key, budget)
    dq_dtype = x.q.dtype if together else jnp.float32
    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, b, i, *_: (b, h, 0, i, 0))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, b, i, *_: (b, h, 0, i))
    start = pl.BlockSpec((1, 1, bq), lambda h, b, i, *_: (b, 0, i))

    def call(prefix_chunk: int | None, row_chunk: int | None) -> Call:
        def shape(x: jax.Array, size: int, dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*x.shape[:2], size, H), dtype)

        def of_row(h, b, i, *_):
            return b, h, row_chunk or 0, 0

        def of_prefix(h, b, i, *_):
            return 0 if plan.shared else b, h, prefix_chunk or 0, 0

        def out(index):  # a chunk's gradients are an array of their own
            return lambda *a: (*index(*a)[:2], 0, 0)

        row, row_out = (pl.BlockSpec((1, 1, keys, H), f) for f in (of_row, out(of_row)))
        prefix, prefix_out = (
            pl.BlockSpec((1, 1, slots, H), f) for f in (of_prefix, out(of_prefix))
        )
        d_slots = shape(x.prefix_k, slots, jnp.float32)
        d_keys = shape(x.k, keys, x.k.dtype)
        kernel = functools.partial(
            backward_kernel,
            plan=plan,
            prefix_chunk=None if prefix_chunk is None else prefix_chunk * slots,
            row_chunk=None if row_chunk is None else row_chunk * keys,
        )
        return Call(
            kernel,
            (plan.K, plan.B, plan.query_blocks),
            x.scalars,
            (
                (x.q, query),
                (x.k, row),
                (x.v, row),
                (x.prefix_k, prefix),
                (x.prefix_v, prefix),
                (x.segment_start, start),
                (d_out, query),
                (lse, number),
                (delta, number),
            ),
            (
                (jax.ShapeDtypeStruct(x.q.shape, dq_dtype), query),
                (d_keys, row_out),
                (d_keys, row_out),
                (d_slots, prefix_out),
                (d_slots, prefix_out),
            ),
            ((plan.folded, H), (keys, H), (keys, H)),
            5,
            plan,
        )

    prefix_chunks, row_chunks = range(P // slots), range(plan.T // keys)
    if together:
        return [(("prefix", "row"), call(0, 0))]
    of_prefix = [(("prefix",), call(c, None)) for c in prefix_chunks]
    return of_prefix + [(("row",), call(None, r)) for r in row_chunks]
