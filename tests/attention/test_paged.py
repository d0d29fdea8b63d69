"""Attention over pages computes what a softmax over each token's own history computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cartridges_jax.attention import PagedKV, paged, paged_attention
from cartridges_jax.attention.pallas_tpu import paged as pallas_paged
from cartridges_jax.engine.batch import decode_arrays, piece_arrays
from cartridges_jax.engine.pages import Pages, Span
from cartridges_jax.engine.sampling import Sampling
from cartridges_jax.engine.scheduler import Decode, Piece, Row, Segment
from cartridges_jax.engine.steps import placed
from cartridges_jax.sharding import DATA, head_axis, make_mesh, place, query_axis
from tests.conftest import MESHES

PAGE = 8


class _Request:
    class config:
        sampling, top_logprobs = Sampling(), 0

    seed = 0


def history_of(owner, contents):
    """Keys and values [n, K, H] of all that stands before an owner's first token."""
    spans = [contents[span] for span in owner.before]
    return [np.concatenate([x[i] for x in spans]) for i in range(2)] if spans else [None, None]


def naive(q, keys, values, scale):
    """One query [N, H] over its keys [n, K, H], in float64."""
    N, H = q.shape
    K = keys.shape[1]
    scores = np.einsum("KGH,SKH->SKG", q.reshape(K, N // K, H).astype(np.float64), keys) * scale
    weights = np.exp(scores - scores.max(0))
    return (np.einsum("SKG,SKH->KGH", weights, values) / weights.sum(0)[..., None]).reshape(N, H)


def make_world(rng, K, H, lengths=(20, 3, 9)):
    """Spans, two of which stand behind the first, and what is on their pages."""
    pages = Pages(80, PAGE)
    first = Span.of_tokens([0] * lengths[0])
    spans = [first, *(Span.of_tokens([0] * n, (first,)) for n in lengths[1:])]
    contents = {}
    for span in spans:
        span.pages = pages.take(pages.needed(span.length))
        span.read = span.length
        contents[span] = rng.normal(size=(2, span.length, K, H)).astype(np.float32)
    return pages, spans, contents


def fill(pool, pages, kv):
    for i in range(kv.shape[1]):
        pool[:, pages[i // PAGE], :, i % PAGE] = kv[:, i]


def run_step(mesh, pool, q, k, v, step, scale, apart, **options):
    """The attended values of a step of one group, and the pool afterwards."""
    groups = mesh.shape[DATA]
    K, N = k.shape[2], q.shape[2]
    with jax.set_mesh(mesh):
        heads, queries = head_axis(K), query_axis(N, K)
        pages = P(DATA, heads, None, None)
        many = [np.concatenate([x] * groups) for x in pool]
        if apart:
            on = PagedKV(*((place(mesh, x, pages),) for x in many))
        else:
            on = PagedKV(*(place(mesh, x[None], P(None, *pages)) for x in many))
        of = [(q, queries), (k, heads), (v, heads)]
        tokens = [
            place(mesh, np.concatenate([x] * groups), P(DATA, None, axis, None)) for x, axis in of
        ]

        @jax.jit
        def run(tokens, on, step):
            layer = 0 if apart else jnp.int32(0)
            return paged_attention(*tokens, on, layer, step, scale=scale, **options)

        out, on = run(tokens, on, placed(mesh, step))
    after = [np.asarray(x[0]).reshape(groups, *pool.shape[1:]) for x in on]
    return np.asarray(out), after


def check_all_groups(out, after, want, pool, wanted_pool, at):
    for d, part in enumerate(np.split(out.reshape(-1, *out.shape[2:]), len(after[0]))):
        np.testing.assert_allclose(part[at], want, atol=3e-6, err_msg=str(d))
    for i, x in enumerate(after):
        for one in x:  # page 0 is anybody's
            np.testing.assert_array_equal(one[1:], wanted_pool[i, 1:])


@pytest.mark.parametrize("how", ["apart", "xla", "pallas_interpret"])
@pytest.mark.parametrize("mesh", [*MESHES, (1, 8)])
@pytest.mark.parametrize(("N", "K"), [(8, 4), (8, 8)])
def test_decoding_rows(rng, monkeypatch, mesh, how, N, K):
    """Alone, behind one span and behind two, in groups of every tile, with pages half full."""
    H, scale, size = 6, 0.37, 16
    monkeypatch.setattr(paged, "TILES", (1, 4, 8))
    monkeypatch.setattr(pallas_paged, "TILES", (1, 4, 8))
    pages, spans, contents = make_world(rng, K, H)
    paths = [()] * 2 + [(spans[0],)] * 9 + [spans[1].path] + [spans[2].path] * 2
    pool = np.zeros((2, pages.count, K, PAGE, H), np.float32)
    for span in spans:
        fill(pool, span.pages, contents[span])
    rows, own, at = [], [], []
    for i, path in enumerate(paths):
        row = Row(path, [0], 99, request=_Request())
        length = int(rng.integers(1, 30))
        row.pages, row.slot, row.drawn = pages.take(pages.needed(length + 1)), i, 1
        own.append(rng.normal(size=(2, length, K, H)).astype(np.float32))
        fill(pool, row.pages, own[-1])
        rows.append(row)
        at.append(length)
    order = sorted(range(len(rows)), key=lambda i: [span.serial for span in rows[i].path])
    plan = Decode([rows[i] for i in order], [at[i] for i in order])
    mesh = make_mesh(*mesh)
    q, k, v = (rng.normal(size=(size, 1, n, H)).astype(np.float32) for n in (N, K, K))
    want, wanted_pool = [], pool.copy()
    for j, i in enumerate(order):
        before, mine = history_of(rows[i], contents), own[i]
        new = [k[j], v[j]]
        keys, values = (
            np.concatenate([x for x in (before[n], mine[n], new[n]) if x is not None])
            for n in range(2)
        )
        want.append(naive(q[j, 0], keys, values, scale))
        fill_at = at[i]
        for n in range(2):
            wanted_pool[n, rows[i].pages[fill_at // PAGE], :, fill_at % PAGE] = new[n][0]
    arrays = decode_arrays([plan] * mesh.shape[DATA], PAGE, size, size)
    options = {"implementation": how} if how != "apart" else {}
    out, after = run_step(mesh, pool, q, k, v, arrays.step, scale, how == "apart", **options)
    check_all_groups(out, after, want, pool, wanted_pool, slice(len(rows)))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("mesh", MESHES)
def test_pieces_of_prompts(rng, monkeypatch, mesh, apart):
    """Prompts begun and gone on with, and a span that is read by the same piece as its follower."""
    N, K, H, scale, size = 8, 4, 6, 0.37, 64
    monkeypatch.setattr(paged, "TILES", (4, 8))
    pages, spans, contents = make_world(rng, K, H)
    q, k, v = (rng.normal(size=(1, size, n, H)).astype(np.float32) for n in (N, K, K))
    fresh = Span.of_tokens([0] * 11, (spans[0],))
    fresh.pages = pages.take(2)
    # Owner, tokens before, tokens of the piece.
    parts = [
        (fresh, 0, 11),
        (Row(fresh.path, [0] * 5, 9), 0, 5),
        (Row((), [0] * 30, 9), 13, 17),
        (Row(spans[1].path, [0] * 9, 9), 0, 9),
        (Row(spans[1].path, [0] * 30, 9), 0, 12),
    ]
    pool = np.zeros((2, pages.count, K, PAGE, H), np.float32)
    for span in spans:
        fill(pool, span.pages, contents[span])
    segments, want, t, wanted_pool = [], [], 0, None
    earlier = {}
    for i, (owner, start, count) in enumerate(parts):
        if isinstance(owner, Row):
            owner.pages, owner.slot, owner.drawn = pages.take(pages.needed(40)), i, 1
            owner.request = _Request()
        earlier[i] = rng.normal(size=(2, start, K, H)).astype(np.float32)
        fill(pool, owner.pages, earlier[i])
        segments.append(Segment(owner, start, count, draws=isinstance(owner, Row)))
    wanted_pool = pool.copy()
    for i, (owner, start, count) in enumerate(parts):
        mine = [np.concatenate([earlier[i][n], x[0, t : t + count]]) for n, x in ((0, k), (1, v))]
        if isinstance(owner, Span):
            contents[owner] = np.stack(mine)
        before = history_of(owner, contents)
        for j in range(count):
            keys, values = (
                np.concatenate([x for x in (before[n], mine[n][: start + j + 1]) if x is not None])
                for n in range(2)
            )
            want.append(naive(q[0, t + j], keys, values, scale))
        fill(wanted_pool, owner.pages, np.stack(mine))
        t += count
    mesh = make_mesh(*mesh)
    arrays = piece_arrays([Piece(segments)] * mesh.shape[DATA], PAGE, size, 8, 8)
    out, after = run_step(mesh, pool, q, k, v, arrays.step, scale, apart)
    check_all_groups(out, after, want, pool, wanted_pool, slice(t))
    assert np.isfinite(out).all()  # also of what only rounds the step up


def test_the_kernel_fetches_each_page_once(rng, monkeypatch):
    """64 rows behind 2,048 slots, with 1 to 1,024 tokens of their own: blocks that change."""
    monkeypatch.setattr(paged, "on_tpu", lambda: True)
    pages, size = Pages(1000, 128), 64
    span = Span.of_tokens([0] * 2048)
    span.pages = pages.take(16)
    rows, at = [], []
    for i in range(size):
        row = Row((span,), [0], 9, request=_Request())
        at.append(int(rng.integers(0, 1024)))
        row.pages, row.slot, row.drawn = pages.take(pages.needed(at[-1] + 1)), i, 1
        rows.append(row)
    step = decode_arrays([Decode(rows, at)], 128, size, size).step
    v = step.visits
    live = np.where(np.arange(len(v.first)) < v.bounds[-1], v.length, 0)
    shared = tuple(jnp.asarray(x) for x in (v.first, v.count, v.pages, live))
    own = jnp.asarray(step.own_pages), jnp.asarray(step.own_index)
    *_, length, ids = map(np.asarray, pallas_paged.items_of(shared, *own, 128))
    fetched = 1 + np.count_nonzero(np.diff(ids, axis=0), axis=0)
    least = 16 + sum(len(row.pages) for row in rows)
    assert least <= fetched.sum() <= 1.02 * least
    unshared = size * 16 + sum(len(row.pages) for row in rows)
    assert unshared > 3 * fetched.sum()
    assert length.sum() == 2048 + sum(at) + size  # slots that are read
