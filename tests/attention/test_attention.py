"""Every implementation must compute what a softmax written with loops computes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cartridges_jax.attention import attention
from cartridges_jax.attention import blocked as blocked_module
from cartridges_jax.sharding import DATA, TOKENS_BT, head_axis, make_mesh, place
from tests.conftest import MESHES

IMPLEMENTATIONS = ("reference", "blocked")


def naive(q, k, v, prefix_k, prefix_v, segment_start, offset, length, scale):
    """One query at a time, in float64, from the definition."""
    B, T, N, H = q.shape
    G = N // k.shape[2]
    out = np.zeros((B, T, N, H))
    for b, t, n in itertools.product(range(B), range(T), range(N)):
        own = range(segment_start[b, t], min(offset + t, k.shape[1] - 1) + 1)
        keys = [prefix_k[p, n // G] for p in range(length)] + [k[b, s, n // G] for s in own]
        values = [prefix_v[p, n // G] for p in range(length)] + [v[b, s, n // G] for s in own]
        scores = np.array(keys, np.float64) @ q[b, t, n].astype(np.float64) * scale
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ np.array(values, np.float64) / weights.sum()
    return out


def make_case(rng, B=4, T=40, S=None, N=8, K=4, H=6, slots=5):
    S = T if S is None else S
    case = {
        "q": rng.normal(size=(B, T, N, H)),
        "k": rng.normal(size=(B, S, K, H)),
        "v": rng.normal(size=(B, S, K, H)),
        "prefix_k": rng.normal(size=(slots, K, H)),
        "prefix_v": rng.normal(size=(slots, K, H)),
    }
    case = {name: x.astype(np.float32) for name, x in case.items()}
    cuts = np.sort(rng.integers(0, T, (B, 2)), axis=1)
    t = np.arange(T)[None]
    start = np.where(t >= cuts[:, 1:], cuts[:, 1:], np.where(t >= cuts[:, :1], cuts[:, :1], 0))
    case["segment_start"] = start.astype(np.int32)
    return case


def run(mesh, case, *, dtype=jnp.float32, weights=None, **options):
    """Values, and gradients of all float inputs where `weights` of the outputs are given."""
    with jax.set_mesh(mesh):
        heads = head_axis(case["k"].shape[2])
        rows, slots = P(DATA, None, heads, None), P(None, heads, None)
        specs = {"q": rows, "k": rows, "v": rows, "prefix_k": slots, "prefix_v": slots}
        arrays = {n: place(mesh, case[n].astype(dtype), s) for n, s in specs.items()}
        start = place(mesh, case["segment_start"], TOKENS_BT)

        def f(arrays):
            prefix = (arrays["prefix_k"], arrays["prefix_v"]) if case["prefix_k"].size else None
            return attention(
                arrays["q"], arrays["k"], arrays["v"], prefix=prefix, segment_start=start,
                scale=0.37, **options,
            )  # fmt: skip

        if weights is None:
            return np.asarray(jax.jit(f)(arrays), np.float32)
        grads = jax.jit(jax.grad(lambda a: jnp.sum(f(a) * place(mesh, weights, rows))))(arrays)
        return {name: np.asarray(g, np.float32) for name, g in grads.items()}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("slots", [0, 1, 5])
@pytest.mark.parametrize("T", [7, 200])
def test_equals_the_definition(rng, implementation, slots, T):
    case = make_case(rng, B=2, T=T, slots=slots)
    got = run(make_mesh(1, 1), case, implementation=implementation)
    want = naive(**case, offset=0, length=slots, scale=0.37)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("K", [1, 2, 8])
def test_gradients_equal_those_of_the_reference_by_autodiff(rng, implementation, K):
    case = make_case(rng, T=150, K=K)
    weights = rng.normal(size=case["q"].shape).astype(np.float32)
    want = run(make_mesh(1, 1), case, weights=weights, implementation="reference")
    got = run(make_mesh(1, 1), case, weights=weights, implementation=implementation)
    for name, gradient in want.items():
        np.testing.assert_allclose(got[name], gradient, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mesh_shape", MESHES)
def test_is_the_same_on_every_mesh(rng, mesh_shape):
    case = make_case(rng, T=130)
    weights = rng.normal(size=case["q"].shape).astype(np.float32)
    want = run(make_mesh(1, 1), case, weights=weights, implementation="reference")
    got = run(make_mesh(*mesh_shape), case, weights=weights, implementation="blocked")
    for name, gradient in want.items():
        np.testing.assert_allclose(got[name], gradient, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padded_prefix_slots_are_not_seen(rng, implementation):
    case = make_case(rng, T=50, slots=5)
    cut = case | {name: case[name][:3] for name in ("prefix_k", "prefix_v")}
    case["prefix_v"][3:] = 1e6
    got = run(make_mesh(1, 1), case, implementation=implementation, prefix_length=3)
    np.testing.assert_allclose(
        got, run(make_mesh(1, 1), cut, implementation=implementation), atol=1e-6
    )


def test_cached_queries_equal_the_whole_row(rng):
    case = make_case(rng, T=12)
    case["segment_start"][:] = 0
    whole = run(make_mesh(1, 1), case)
    tail = case | {"q": case["q"][:, 9:], "segment_start": case["segment_start"][:, 9:]}
    np.testing.assert_allclose(run(make_mesh(1, 1), tail, query_offset=9), whole[:, 9:], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_segments_never_see_each_other(rng, implementation):
    case = make_case(rng, T=40)
    case["segment_start"][:] = np.where(np.arange(40) >= 17, 17, 0)
    weights = np.zeros(case["q"].shape, np.float32)
    weights[:, 17:] = 1.0  # only the second segment's outputs matter
    grads = run(make_mesh(1, 1), case, weights=weights, implementation=implementation)
    for name in ("q", "k", "v"):
        assert not grads[name][:, :17].any(), name
        assert grads[name][:, 17:].any(), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_stays_within_its_rounding(rng, implementation):
    case = make_case(rng, T=140, H=32)
    want = run(make_mesh(1, 1), case, implementation="reference")
    got = run(make_mesh(1, 1), case, dtype=jnp.bfloat16, implementation=implementation)
    assert np.abs(got - want).max() < 0.06 * np.abs(want).max()


def test_blocked_refuses_a_cache_and_says_why(rng):
    case = make_case(rng, T=4)
    with pytest.raises(ValueError, match="whole rows"):
        run(make_mesh(1, 1), case, implementation="blocked", query_offset=0)


def test_blocks_cover_the_row():
    for T in (1, 127, 128, 129, 400):
        blocks = blocked_module._blocks(T)
        assert blocks[0][0] == 0 and blocks[-1][1] == T
        assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
