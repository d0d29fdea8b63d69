"""Every implementation must compute what a softmax written with loops computes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cartridges_jax.attention import Mask, attention, backends, folded, pallas_tpu
from cartridges_jax.attention import blocked as blocked_module
from cartridges_jax.attention.mask import Backward, Rows
from cartridges_jax.attention.pallas_tpu import plan
from cartridges_jax.sharding import DATA, MODEL, TOKENS_BT, head_axis, make_mesh, place, query_axis
from tests.conftest import MESHES

IMPLEMENTATIONS = ("reference", "folded", "blocked", "pallas_interpret")


def naive(q, k, v, prefix_k, prefix_v, segment_start, length, scale):
    """One query at a time, in float64, from the definition: values and log-sum-exp."""
    B, T, N, H = q.shape
    K = k.shape[2]
    out, lse = np.zeros((B, T, N, H)), np.zeros((B, T, N))
    for b, t in itertools.product(range(B), range(T)):
        own = slice(segment_start[b, t], t + 1)
        keys = np.concatenate([prefix_k[:length], k[b, own]]).astype(np.float64)
        values = np.concatenate([prefix_v[:length], v[b, own]]).astype(np.float64)
        query = q[b, t].astype(np.float64).reshape(K, N // K, H)
        scores = np.einsum("KGH,SKH->SKG", query, keys) * scale
        weights = np.exp(scores - scores.max(0))
        mean = np.einsum("SKG,SKH->KGH", weights, values) / weights.sum(0)[..., None]
        out[b, t] = mean.reshape(N, H)
        lse[b, t] = (scores.max(0) + np.log(weights.sum(0))).reshape(N)
    return out, lse


def make_case(rng, B=4, T=40, N=8, K=4, H=6, slots=5):
    case = {
        "q": rng.normal(size=(B, T, N, H)),
        "k": rng.normal(size=(B, T, K, H)),
        "v": rng.normal(size=(B, T, K, H)),
        "prefix_k": rng.normal(size=(slots, K, H)),
        "prefix_v": rng.normal(size=(slots, K, H)),
    }
    case = {name: x.astype(np.float32) for name, x in case.items()}
    cuts = np.sort(rng.integers(0, T, (B, 2)), axis=1)
    t = np.arange(T)[None]
    start = np.where(t >= cuts[:, 1:], cuts[:, 1:], np.where(t >= cuts[:, :1], cuts[:, :1], 0))
    case["segment_start"] = start.astype(np.int32)
    return case


def compiled(
    mesh, case, *, dtype=jnp.float32, weights=None, return_lse=True, prefix_length=None, **options,
):  # fmt: skip
    """A function without arguments: values and log-sum-exp, and gradients of all float inputs.

    Gradients are there if `weights` are given, of the values and, where it is asked for, of the
    log-sum-exp.
    """
    with jax.set_mesh(mesh):
        N, K = case["q"].shape[2], case["k"].shape[2]
        heads, query_heads = head_axis(K), query_axis(N, K)
        queries, rows = (P(DATA, None, axis, None) for axis in (query_heads, heads))
        in_groups = case["prefix_k"].ndim == 4
        slots = P(DATA, None, heads, None) if in_groups else P(None, heads, None)
        specs = {"q": queries, "k": rows, "v": rows, "prefix_k": slots, "prefix_v": slots}
        arrays = {n: place(mesh, case[n].astype(dtype), s) for n, s in specs.items()}
        start = place(mesh, case["segment_start"], TOKENS_BT)
        of_what = (queries, P(DATA, None, query_heads))[: 1 + return_lse]
        placed = [place(mesh, w, s) for w, s in zip(weights or (), of_what, strict=bool(weights))]

    def values(arrays):
        k, v, *prefix = (arrays[name] for name in ("k", "v", "prefix_k", "prefix_v"))
        found = attention(
            arrays["q"], k, v, Mask(start, prefix_length),
            prefix=tuple(prefix) if case["prefix_k"].size else None, scale=0.37,
            return_lse=return_lse, **options,
        )  # fmt: skip
        return found if return_lse else (found,)

    def weighed(arrays):
        found = values(arrays)
        return sum(jnp.sum(x * w) for x, w in zip(found, placed, strict=True)), found

    function = jax.jit(jax.grad(weighed, has_aux=True) if weights else values)

    def call():
        with jax.set_mesh(mesh):
            return jax.tree.map(lambda x: np.asarray(x, np.float32), function(arrays))

    return call


def run(mesh, case, **options):
    """Values and log-sum-exp; with `weights`, gradients and these."""
    return compiled(mesh, case, **options)()


def gradients(mesh, case, weights, **options):
    """Of the weighed values alone."""
    no_lse = np.zeros(weights.shape[:3], np.float32)
    return run(mesh, case, weights=(weights, no_lse), **options)[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("T", "slots"), [(7, 0), (200, 1), (40, 130)])
def test_equals_the_definition(rng, implementation, T, slots):
    case = make_case(rng, B=2, T=T, slots=slots)
    got = run(make_mesh(1, 1), case, implementation=implementation)
    want = naive(**case, length=slots, scale=0.37)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize("vmem", [56 * plan.MIB, 1_500_000, 0])
def test_blocks_of_every_kind_are_visited_or_skipped(rng, monkeypatch, vmem):
    """Blocks smaller than segments and prefix, and keys in chunks where VMEM is too small."""
    sizes = dataclasses.replace(plan.sizes_of_chip(), vmem=vmem)
    monkeypatch.setattr(plan, "sizes_of_chip", lambda: sizes)
    blocks = plan.Blocks(queries=128, row_keys=128, prefix_keys=128)
    case = make_case(rng, B=2, T=500, N=4, K=2, H=8, slots=300)
    rows = Rows(*(jnp.asarray(x) for x in (*case.values(), 290)))
    d_out = jnp.asarray(rng.normal(size=case["q"].shape).astype(np.float32))

    def passes(forward, backward, **options):
        out, lse = forward(rows, scale=0.3, **options)
        delta = jnp.einsum("BTNH,BTNH->BTN", out, d_out)
        back = Backward(out, lse, delta, d_out)
        return out, lse, *backward(rows, back, scale=0.3, **options)

    want = passes(blocked_module.blocked_forward, blocked_module.blocked_backward)
    got = passes(
        pallas_tpu.pallas_forward, pallas_tpu.pallas_backward, blocks=blocks, interpret=True
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("implementation", ["blocked", "pallas_interpret"])
@pytest.mark.parametrize(
    ("mesh_shape", "num_heads"),
    [
        *((shape, 8) for shape in MESHES),
        ((1, 8), 16),  # two devices share the queries of each of the 4 kv heads
        ((1, 8), 12),  # all devices compute all
    ],
)
def test_is_the_same_on_every_mesh(rng, mesh_shape, num_heads, implementation):
    case = make_case(rng, T=130, N=num_heads)
    weights = rng.normal(size=case["q"].shape).astype(np.float32)
    of_lse = rng.normal(size=weights.shape[:3]).astype(np.float32)
    options = {"weights": (weights, of_lse), "prefix_length": 3}
    want, _ = run(make_mesh(1, 1), case, implementation="reference", **options)
    got, _ = run(make_mesh(*mesh_shape), case, implementation=implementation, **options)
    for name, gradient in want.items():
        np.testing.assert_allclose(got[name], gradient, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mesh_shape", MESHES)
def test_groups_of_rows_have_prefixes_of_their_own(rng, mesh_shape, implementation):
    """Each group's values, and the gradients of its prefix, are those of its rows alone."""
    C = 4
    case = make_case(rng, B=2 * C, T=130, slots=9)
    prefixes = {n: rng.normal(size=(C, *case[n].shape)) for n in ("prefix_k", "prefix_v")}
    case |= {name: x.astype(np.float32) for name, x in prefixes.items()}
    weights = rng.normal(size=case["q"].shape).astype(np.float32)
    of_lse = rng.normal(size=weights.shape[:3]).astype(np.float32)
    live = np.array([9, 3, 0, 7])
    got, values = run(
        make_mesh(*mesh_shape), case, implementation=implementation, weights=(weights, of_lse),
        prefix_length=jnp.asarray(live),
    )  # fmt: skip
    for c in range(C):
        rows = slice(2 * c, 2 * c + 2)
        alone = {n: x[c if "prefix" in n else rows] for n, x in case.items()}
        want, attended = run(
            make_mesh(1, 1), alone, implementation="reference", prefix_length=int(live[c]),
            weights=(weights[rows], of_lse[rows]),
        )  # fmt: skip
        for a, b in zip(values, attended, strict=True):
            np.testing.assert_allclose(a[rows], b, atol=1e-5)
        for name, gradient in want.items():
            own = got[name][c if "prefix" in name else rows]
            np.testing.assert_allclose(own, gradient, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_a_float32_prefix_has_a_float32_gradient(rng, implementation):
    """Also where it is summed over devices, while everything else is bfloat16."""
    case = make_case(rng, B=8, T=64)

    def prefix_gradient(mesh, dtype, of_rows=jnp.bfloat16, implementation=implementation):
        with jax.set_mesh(mesh):
            rows = P(DATA, None, MODEL, None)
            q, k, v = (
                place(mesh, jnp.asarray(case[n], jnp.bfloat16).astype(of_rows), rows) for n in "qkv"
            )
            start = place(mesh, case["segment_start"], TOKENS_BT)
            prefix_k, prefix_v = (
                place(mesh, jnp.asarray(case[n], jnp.bfloat16).astype(dtype), P(*rows[1:]))
                for n in ("prefix_k", "prefix_v")
            )

            def total(prefix_k):
                out = attention(
                    q, k, v, Mask(start), prefix=(prefix_k, prefix_v), scale=0.3,
                    implementation=implementation,
                )  # fmt: skip
                return jnp.sum(out.astype(jnp.float32) ** 2)

            return jax.jit(jax.grad(total))(prefix_k)

    want = np.asarray(prefix_gradient(make_mesh(1, 1), jnp.float32), np.float64)
    exact = np.asarray(prefix_gradient(make_mesh(1, 1), jnp.float32, jnp.float32, "reference"))
    assert np.abs(want - exact).max() < 0.02 * np.abs(exact).max()
    error = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        got = prefix_gradient(make_mesh(8, 1), dtype)
        assert got.dtype == dtype
        error[dtype] = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
    assert error[jnp.float32] < 1e-5 < 1e-3 < error[jnp.bfloat16]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_in_front_of_a_prompt_harms_nothing(rng, implementation):
    """Its queries have no key of their segment; they see themselves, and nothing is NaN."""
    case = make_case(rng, T=150, slots=0)
    case["segment_start"][:] = 7
    weights = rng.normal(size=case["q"].shape).astype(np.float32)
    no_lse = np.zeros(weights.shape[:3], np.float32)
    grads, got = run(
        make_mesh(1, 1), case, weights=(weights, no_lse), implementation=implementation
    )
    clear = case | {"segment_start": np.minimum(case["segment_start"], np.arange(150)[None])}
    for a, want in zip(got, naive(**clear, length=0, scale=0.37), strict=True):
        np.testing.assert_allclose(a, want, atol=3e-6)
    assert all(np.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_prefix_without_live_slots_is_none(rng, implementation):
    case = make_case(rng, T=50, slots=5)
    got = run(make_mesh(1, 1), case, implementation=implementation, prefix_length=0)
    want = naive(**case, length=0, scale=0.37)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padded_prefix_slots_are_not_seen(rng, implementation):
    case = make_case(rng, T=50, slots=5)
    cut = case | {name: case[name][:3] for name in ("prefix_k", "prefix_v")}
    case["prefix_v"][3:] = 1e6
    got = run(make_mesh(1, 1), case, implementation=implementation, prefix_length=3)
    want = run(make_mesh(1, 1), cut, implementation=implementation)
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_lies_outside_is_cut_off(rng, implementation):
    """More live slots than there are; segments that begin before the row."""
    case = make_case(rng, B=2, T=300, N=4, K=2, slots=130)
    inside = case | {"segment_start": np.maximum(case["segment_start"], 0)}
    case["segment_start"] = np.where(case["segment_start"] == 0, -1, case["segment_start"])
    got = run(make_mesh(1, 1), case, implementation=implementation, prefix_length=200)
    want = naive(**inside, length=130, scale=0.37)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("block", [512, 7])  # queries of all rows at once, and a few at a time
@pytest.mark.parametrize("scores", [2**22, 700])  # all rows at once, and some
def test_folded_rows_in_blocks(rng, monkeypatch, block, scores):
    monkeypatch.setattr(folded, "BLOCK", block)
    monkeypatch.setattr(folded, "MOST_SCORES", scores)
    case = make_case(rng, T=12)
    want = run(make_mesh(1, 1), case, implementation="reference")
    got = run(make_mesh(1, 1), case, implementation="folded")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("T", "cut"), [(40, 17), (300, 170)])  # in one block of queries; in many
def test_segments_never_see_each_other(rng, implementation, T, cut):
    case = make_case(rng, B=2, T=T, N=4, K=2)
    case["segment_start"][:] = np.where(np.arange(T) >= cut, cut, 0)
    weights = np.zeros(case["q"].shape, np.float32)
    weights[:, cut:] = 1.0  # only the second segment's outputs matter
    grads = gradients(make_mesh(1, 1), case, weights, implementation=implementation)
    for name in ("q", "k", "v"):
        assert not grads[name][:, :cut].any(), name
        assert grads[name][:, cut:].any(), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_heads_of_256(rng, implementation):
    case = make_case(rng, B=2, T=40, N=2, K=1, H=256, slots=5)
    weights = tuple(rng.normal(size=s).astype(np.float32) for s in ((2, 40, 2, 256), (2, 40, 2)))
    mesh = make_mesh(1, 1)
    want = run(mesh, case, weights=weights, implementation="reference")
    got = run(mesh, case, weights=weights, implementation=implementation)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, want)


def test_the_kernels_refuse_what_they_cannot_serve(rng):
    def with_heads_of(H, dtype=jnp.float32):
        case = make_case(rng, T=4, H=H)
        return run(make_mesh(1, 1), case, implementation="pallas", dtype=dtype)

    with pytest.raises(ValueError, match=r"heads of \(64, 128, 256\) dimensions, not 6"):
        with_heads_of(6)
    with pytest.raises(ValueError, match="bfloat16 and float32, not float16"):
        with_heads_of(64, jnp.float16)
    with pytest.raises(ValueError, match="needs a TPU; elsewhere 'pallas_interpret'"):
        with_heads_of(64)


def test_shapes_that_do_not_fit_are_refused(rng):
    case = make_case(rng, T=20, N=6, K=4)
    with pytest.raises(ValueError, match="6 query heads are no multiple of 4 kv heads"):
        run(make_mesh(1, 1), case)
    case = make_case(rng, B=3, T=20)
    case |= {n: np.stack([case[n]] * 2) for n in ("prefix_k", "prefix_v")}
    with pytest.raises(ValueError, match="3 rows cannot be shared out to 2 prefixes"):
        run(make_mesh(1, 1), case)


@pytest.mark.parametrize(
    ("case", "tpu", "message"),
    [
        ({}, True, "pallas (whole rows on TPU)"),
        ({"H": 6}, True, "blocked (the Pallas kernel serves heads of (64, 128, 256) dimensions"),
        ({}, False, "blocked (whole rows, and this is no TPU)"),
        ({"slots": 20}, False, "folded (short rows behind a longer prefix)"),
        ({"slots": 20}, True, "pallas (whole rows on TPU)"),
        ({"T": 8}, True, "folded (few queries a row)"),
    ],
)
def test_the_choice_is_logged_once_with_its_reason(caplog, monkeypatch, case, tpu, message):
    monkeypatch.setattr(backends, "on_tpu", lambda: tpu)
    backends._log_once.cache_clear()
    caplog.set_level("INFO", logger=backends.__name__)
    case = {"T": 20, "H": 64, "slots": 5} | case
    q = jnp.zeros((2, case["T"], 2, case["H"]))
    for _ in range(2):
        chosen = backends.choose(None, q, case["slots"], False)
    [record] = caplog.records
    assert record.message.startswith(f"attention: {message}")
    assert message.startswith(chosen)


@pytest.mark.parametrize(("N", "K"), [(4, 4), (8, 4), (9, 3), (32, 8), (64, 1)])
def test_windows_reach_the_first_segment_of_a_block(N, K):
    most = blocked_module.BLOCK
    for T in (1, most - 1, most, most + 1, 2 * most + 1, 2048):
        blocks = blocked_module._Blocks(T, N, K)
        assert blocks.count * blocks.size >= T > (blocks.count - 1) * blocks.size
        block, start = jnp.meshgrid(jnp.arange(blocks.count), jnp.arange(0, T, 37), indexing="ij")
        which = jax.vmap(blocks.which_window)(block.ravel(), start.reshape(-1, 1))
        window = jnp.asarray(blocks.windows)[which].reshape(block.shape)
        seen = start < (block + 1) * blocks.size
        assert jnp.all((block + 1 - window) * blocks.size <= start, where=seen)


@pytest.mark.parametrize(("N", "K"), [(4, 4), (8, 4), (9, 3), (32, 8), (128, 8)])
@pytest.mark.parametrize("T", [200, 256, 512, 1000, 2048])
def test_rows_of_scores_are_whole_vectors_and_no_power_of_two_apart(N, K, T):
    blocks = blocked_module._Blocks(T, N, K)
    width = N // K * blocks.size
    assert width % 8 == 0 and width % 64 != 0
    assert blocks.size < blocked_module.BLOCK + 16 and blocks.count * blocks.size < 1.1 * T + 16
