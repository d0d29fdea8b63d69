"""cuDNN's path, and the fallback, against the reference: on a machine with an NVIDIA GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cartridges_jax.attention import cudnn
from cartridges_jax.attention.cudnn import why_not_cudnn
from cartridges_jax.sharding import make_mesh
from tests.attention.test_attention import compiled, make_case, run
from tests.attention.test_grid import AXES, pairwise, rounded

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
SHAPES = {name: values for name, values in AXES.items() if name != "dtype"}

CASES = [
    *(("cudnn", "bfloat16", *shape) for shape in pairwise(SHAPES.values())),
    *(("blocked", "float32", *shape) for shape in pairwise(SHAPES.values())[:4]),
]


def problem(dtype, group, head_dim, slots):
    """Three packed rows, one of a single segment and one of padding, and weights of the values."""
    rng = np.random.default_rng([group, head_dim, slots])
    case = make_case(rng, B=3, T=150, N=2 * group, K=2, H=head_dim, slots=slots)
    case["segment_start"][1] = 0
    case["segment_start"][2] = np.arange(150)
    case = {n: x if n == "segment_start" else rounded(x, dtype) for n, x in case.items()}
    return case, (rounded(rng.normal(size=case["q"].shape), dtype),)


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize(("implementation", "dtype", *SHAPES), CASES)
    def test_equals_the_reference(self, implementation, dtype, group, head_dim, slots):
        case, weights = problem(dtype, group, head_dim, slots)
        options = {"weights": weights, "return_lse": False}
        length = max(slots - 7, 0)
        mesh = make_mesh(1, 1)
        with jax.default_matmul_precision("highest"):
            want, (out,) = run(
                mesh, case, implementation="reference", prefix_length=length, **options
            )
            found, (got,) = run(
                mesh, case, implementation=implementation, prefix_length=length,
                dtype=jnp.dtype(dtype), **options,
            )  # fmt: skip
        exact = dtype == "float32"
        np.testing.assert_allclose(got, out, atol=5e-5 if exact else 3e-2)
        for name, gradient in want.items():
            scale = max(1.0, np.abs(gradient).max(initial=0))
            bound = (2e-5 if exact else 3e-2) * scale
            np.testing.assert_allclose(found[name], gradient, atol=bound, err_msg=name)

    def test_is_chosen_for_half_precision(self):
        case, _ = problem("bfloat16", 4, 64, 100)
        call = compiled(make_mesh(1, 1), case, dtype=jnp.bfloat16, return_lse=False)
        named = compiled(
            make_mesh(1, 1), case, dtype=jnp.bfloat16, return_lse=False, implementation="cudnn"
        )
        jax.tree.map(np.testing.assert_array_equal, call(), named())


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="for machines without a GPU")
def test_a_machine_without_a_gpu_says_so():
    q = jnp.zeros((1, 40, 2, 64), jnp.bfloat16)
    assert why_not_cudnn(q, False) == "needs a GPU; jax runs on cpu"
    case, _ = problem("bfloat16", 1, 64, 0)
    with pytest.raises(ValueError, match="implementation='cudnn' needs a GPU; jax runs on cpu"):
        run(make_mesh(1, 1), case, dtype=jnp.bfloat16, implementation="cudnn")


def test_what_cudnn_cannot_serve_is_told(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    missing = ["was not found"]
    monkeypatch.setattr(cudnn, "_what_is_missing", lambda: missing[0])
    q = jnp.zeros((1, 40, 2, 64), jnp.bfloat16)
    assert why_not_cudnn(q, False) == "was not found"
    missing[0] = None
    assert why_not_cudnn(q, False) is None
    assert "not float32" in why_not_cudnn(q.astype(jnp.float32), False)
    assert "not 12" in why_not_cudnn(q[..., :12], False)
    assert "not 39" in why_not_cudnn(q[:, :39], False)
    assert "return_lse must be False" in why_not_cudnn(q, True)
    long = jnp.zeros((2, 65_536, 1, 8), jnp.bfloat16)
    assert "at most 4 GiB, not 16" in why_not_cudnn(long, False)
