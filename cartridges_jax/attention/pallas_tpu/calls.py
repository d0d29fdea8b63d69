"""Which blocks of which array lie in VMEM when: grids and block maps of the kernels.

A `Call` can be run, or counted (`experiments.kernel_traffic`).
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
    parallel: tuple[bool, ...]  # axes of the grid whose steps may run on different cores
    products: int  # matrix products of a block
    chunks: int  # of keys that it runs over, of the plan's
    plan: Plan

    def run(self) -> Any:
        plan = self.plan
        pairs = plan.B * plan.K * plan.G * plan.T * (plan.P + plan.S // 2)
        pairs = pairs * self.chunks // plan.chunks
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
                dimension_semantics=tuple(
                    "parallel" if alike else "arbitrary" for alike in self.parallel
                ),
                vmem_limit_bytes=plan.vmem,
            ),
            # Of rows that are not packed.
            cost_estimate=pl.CostEstimate(
                flops=2 * self.products * pairs * plan.H,
                transcendentals=pairs,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in everything),
            ),
            interpret=plan.interpret,
            name=self.kernel.func.__name__,
        )(*self.scalars, *(x for x, _ in self.inputs))


def forward_call(plan: Plan, x: Inputs) -> Call:
    """The forward kernel: values [B, K, G, T, H] and log-sum-exp [B, K, G, T].

    Its last axis goes over the chunks of keys, the first chunk of the prefix with the first of the
    row and so on; a chunk without a visible key is not fetched.
    """
    bq, G, H = plan.blocks.queries, plan.G, plan.H
    slots, keys = plan.P // plan.chunks, plan.S // plan.chunks

    def row_chunk(h, b, i, c, first, length):
        last = ((i + 1) * bq - 1) // keys
        return b, h, jnp.clip(c, first[b, i] // keys, last), 0

    def prefix_chunk(h, b, i, c, first, length):
        live = jnp.maximum((length[b] + slots - 1) // slots - 1, 0)
        return b // plan.group_rows, h, jnp.minimum(c, live), 0

    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, b, i, c, *_: (b, h, 0, i, 0))
    row = pl.BlockSpec((1, 1, keys, H), row_chunk)
    prefix = pl.BlockSpec((1, 1, slots, H), prefix_chunk)
    start = pl.BlockSpec((1, 1, bq), lambda h, b, i, c, *_: (b, 0, i))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, b, i, c, *_: (b, h, 0, i))
    return Call(
        kernel=functools.partial(forward_kernel, plan=plan),
        grid=(plan.K, plan.B, plan.query_blocks, plan.chunks),
        scalars=x.scalars,
        inputs=(
            (x.q, query),
            (x.k, row),
            (x.v, row),
            (x.prefix_k, prefix),
            (x.prefix_v, prefix),
            (x.segment_start, start),
        ),
        outputs=(
            (jax.ShapeDtypeStruct(x.q.shape, x.q.dtype), query),
            (jax.ShapeDtypeStruct(x.q.shape[:-1], jnp.float32), number),
        ),
        scratch=((1, plan.folded), (1, plan.folded), (H, plan.folded)),
        parallel=(True, True, True, False),
        products=2,
        chunks=plan.chunks,
        plan=plan,
    )


def backward_calls(plan: Plan, x: Inputs, d_out: Any, lse: Any, delta: Any) -> list[Call]:
    """The backward kernel, once for each chunk of keys: one for usual sizes.

    A call gives dq [B, K, G, T, H], whose sum over the calls is wanted, and the gradients of its
    chunks of the row's keys and values [B, K, keys, H] and of the prefix's.
    """
    bq, G, H = plan.blocks.queries, plan.G, plan.H
    slots, keys = plan.P // plan.chunks, plan.S // plan.chunks
    dq_dtype = x.q.dtype if plan.chunks == 1 else jnp.float32
    query = pl.BlockSpec((1, 1, G, bq, H), lambda h, b, i, *_: (b, h, 0, i, 0))
    number = pl.BlockSpec((1, 1, G, bq), lambda h, b, i, *_: (b, h, 0, i))
    start = pl.BlockSpec((1, 1, bq), lambda h, b, i, *_: (b, 0, i))

    def of_row(size: int, chunk: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, size, H), lambda h, b, i, *_: (b, h, chunk, 0))

    def of_prefix(size: int, chunk: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, 1, size, H), lambda h, b, i, *_: (b // plan.group_rows, h, chunk, 0)
        )

    d_keys = jax.ShapeDtypeStruct((*x.k.shape[:2], keys, H), x.k.dtype)
    d_slots = jax.ShapeDtypeStruct((*x.prefix_k.shape[:2], slots, H), jnp.float32)

    def call(chunk: int) -> Call:
        row, prefix = of_row(keys, chunk), of_prefix(slots, chunk)
        row_out, prefix_out = of_row(keys, 0), of_prefix(slots, 0)  # a chunk's own arrays
        return Call(
            kernel=functools.partial(backward_kernel, plan=plan, chunk=chunk),
            grid=(plan.K, plan.B, plan.query_blocks),
            scalars=x.scalars,
            inputs=(
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
            outputs=(
                (jax.ShapeDtypeStruct(x.q.shape, dq_dtype), query),
                (d_keys, row_out),
                (d_keys, row_out),
                (d_slots, prefix_out),
                (d_slots, prefix_out),
            ),
            scratch=((plan.folded, H), (keys, H), (keys, H)),
            # The gradient of the prefix is a sum over rows, of the keys one over queries.
            parallel=(True, False, False),
            products=5,
            chunks=1,
            plan=plan,
        )

    return [call(chunk) for chunk in range(plan.chunks)]
