"""One suite for every implementation: values, all gradients, log-sum-exp, determinism.

`make test` runs a subset in which every pair of two parameters' values occurs, `make test-full` the
whole grid.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cartridges_jax.sharding import make_mesh
from tests.attention.test_attention import IMPLEMENTATIONS, compiled, make_case, naive, run

AXES = {
    "dtype": ("float32", "bfloat16"),
    "group": (1, 3, 4, 8),
    "head_dim": (32, 64, 128),
    "slots": (0, 1, 100, 128, 512),
}


def pairs_of(case):
    """All pairs of (axis, value) that a case holds."""
    return set(itertools.combinations(enumerate(case), 2))


def pairwise(axes):
    """A few cases of the product that hold every pair of values; always the same ones."""
    cases = list(itertools.product(*axes))
    missing = set().union(*map(pairs_of, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen


SUBSET = set(pairwise(AXES.values()))
GRID = [
    pytest.param(*case, marks=() if case in SUBSET else pytest.mark.full)
    for case in itertools.product(*AXES.values())
]


@functools.lru_cache(maxsize=8)  # the implementations follow each other
def problem(dtype, group, head_dim, slots):
    """Inputs of three packed rows, weights of what comes out, and what is right.

    Values by the definition in float64; gradients by autodiff of the float32 reference.
    """
    rng = np.random.default_rng([group, head_dim, slots])
    case = make_case(rng, B=3, T=150, N=2 * group, K=2, H=head_dim, slots=slots)
    case["segment_start"][1] = 0
    case["segment_start"][2] = np.arange(150)  # as packing marks padding: each sees itself alone
    # Both sides start from inputs that bfloat16 can hold.
    case = {n: x if n == "segment_start" else rounded(x, dtype) for n, x in case.items()}
    shape = case["q"].shape
    weights = tuple(rounded(rng.normal(size=s), dtype) for s in (shape, shape[:3]))
    values = naive(**case, length=slots, scale=0.37)
    gradients = run(make_mesh(1, 1), case, weights=weights, implementation="reference")[0]
    return case, weights, values, gradients


def rounded(x, dtype):
    return np.asarray(jnp.asarray(x, dtype), np.float32)


def test_the_subset_holds_every_pair():
    held = set().union(*map(pairs_of, SUBSET))
    assert held == set().union(*(pairs_of(c) for c in itertools.product(*AXES.values())))
    assert len(SUBSET) < 30


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(tuple(AXES), GRID)
def test_values_and_gradients(implementation, dtype, group, head_dim, slots):
    """Each row ragged in its own way: segments of all sizes, one long segment, padding only."""
    case, weights, (want_out, want_lse), want = problem(dtype, group, head_dim, slots)
    call = compiled(
        make_mesh(1, 1), case, weights=weights, dtype=jnp.dtype(dtype),
        implementation=implementation,
    )  # fmt: skip
    gradients, (out, lse) = call()
    exact = dtype == "float32"
    np.testing.assert_allclose(out, want_out, atol=2e-5 if exact else 3e-2)
    np.testing.assert_allclose(lse, want_lse, atol=2e-5 if exact else 3e-3)
    for name, gradient in want.items():
        scale = max(1.0, np.abs(gradient).max(initial=0))
        bound = (5e-6 if exact else 3e-2) * scale
        np.testing.assert_allclose(gradients[name], gradient, atol=bound, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, call(), (gradients, (out, lse)))  # deterministic
