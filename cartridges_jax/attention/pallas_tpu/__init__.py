"""Attention on TPU: Pallas kernels for a prefix that all rows share and packed, causal rows.

Two kernels, one forward and one backward. A kv head's keys stay in VMEM, the row's while its
queries pass by and a shared prefix's for all rows, so every array is read from HBM once; inside,
loops run over the blocks of keys that some query of the block sees, and over no others. The heads
of a group are folded into the query block, and scores are kept transposed, [keys, group * queries]:
what belongs to a query then lies along lanes. The backward kernel makes all five gradients from one
recomputation of the scores; that of a shared prefix is summed in VMEM over queries, group and rows,
in float32.

Time grows with B * N * T * (P + visible row keys) * H: 2 products of that size forward, 5 backward.
Memory beside inputs, outputs and gradients: one float32 per query and head (the log-sum-exp), the
same again in the backward pass. Where the caller's arrays lie tokens first they are turned; inside
a model XLA gives keys and values the kernels' layout instead, and copies what has the size of the
queries: rotated ones before either kernel, and their gradient. Keys that do not fit VMEM
(with their gradients, from some 30,000 slots and tokens on v5e and v6e, 14,000 on v5p and tpu7x,
3,000 on v4) are taken in chunks: the forward kernel reads them anew for each block of queries, the
backward one runs once a chunk, with a float32 gradient of the queries each time. Figures of the
design: experiments/README.md.
"""

import functools

import jax
import jax.numpy as jnp

from cartridges_jax.attention.mask import Attended, Backward, Rows
from cartridges_jax.attention.pallas_tpu.calls import backward_calls, forward_call
from cartridges_jax.attention.pallas_tpu.plan import Blocks, make_plan, pad, prepare


def pallas_forward(
    rows: Rows, *, scale: float, blocks: Blocks | None = None, interpret: bool = False
) -> Attended:
    """Attended values and log-sum-exp of whole rows. `blocks` are for tests."""
    plan = make_plan(rows, scale, blocks, interpret, backward=False)
    out, lse = forward_call(plan, prepare(plan, rows)).run()
    B, T, N, _ = rows.q.shape
    return _tokens_first(out, rows.q.shape), lse.transpose(0, 3, 1, 2)[:, :T].reshape(B, T, N)


def _tokens_first(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, K, G, T, H], padded, as [B, T, N, H]."""
    return x.transpose(0, 3, 1, 2, 4)[:, : shape[1]].reshape(shape)


def pallas_backward(
    rows: Rows,
    back: Backward,
    *,
    scale: float,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Gradients of q, k, v in their dtypes, and of prefix_k and prefix_v in float32.

    That of q is float32 where keys come in chunks, as it is a sum over them.
    """
    plan = make_plan(rows, scale, blocks, interpret, backward=True)
    B, K, G, T, H = plan.B, plan.K, plan.G, plan.T, plan.H

    def per_query(x: jax.Array) -> jax.Array:
        return pad(x.reshape(B, -1, K, G).transpose(0, 2, 3, 1), 3, T)

    d_folded = back.d_out.reshape(B, -1, K, G, H).transpose(0, 2, 3, 1, 4)
    d_folded = pad(d_folded.astype(rows.q.dtype), 3, T)
    calls = backward_calls(
        plan, prepare(plan, rows), d_folded, per_query(back.lse), per_query(back.delta)
    )
    d_queries, *of_keys = zip(*(call.run() for call in calls), strict=True)
    dq = functools.reduce(jnp.add, d_queries)
    dk, dv, dpk, dpv = (jnp.concatenate(parts, axis=2) for parts in of_keys)

    def tokens_first(x: jax.Array, length: int) -> jax.Array:
        return jnp.moveaxis(x[:, :, :length], 1, 2)

    d_own = [tokens_first(x, rows.k.shape[1]) for x in (dk, dv)]
    d_prefix = [tokens_first(x, rows.prefix_k.shape[-3]) for x in (dpk, dpv)]
    d_prefix = [x.reshape(rows.prefix_k.shape) for x in d_prefix]
    return _tokens_first(dq, rows.q.shape), *d_own, *d_prefix
