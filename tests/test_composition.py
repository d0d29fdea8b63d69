"""Contexts one behind the other: where their keys come to stand, and what that leaves out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.composition import Composition, places, put, rebased
from cartridges_jax.errors import InputError
from cartridges_jax.models.rope import YarnScaling
from cartridges_jax.models.transformer import KV, Prefix
from tests.conftest import document_named


def composed(model, prefixes, how):
    """Prefixes as they stand one behind the other."""
    sizes = [(int(p.length), int(p.next_position)) for p in prefixes]
    return [
        Prefix(put(p.kv, at, model.config.rope), jnp.int32(at.length), jnp.int32(at.positions))
        for p, at in zip(prefixes, places(sizes, how), strict=True)
    ]


def contexts(model, names=("targets", "evaluate")):
    """Two real texts, each rendered as the only one."""
    documents = [document_named(name) for name in names]
    return [model.template.render_context(d.title, d.text)[:150] for d in documents]


def at_positions(model, ids, start):
    """The real keys of tokens that begin at a position and see one another alone."""
    import jax

    from cartridges_jax.sharding import TOKENS_BT, place

    ids = np.asarray(ids, np.int32)[None]
    positions = np.arange(start, start + ids.shape[1], dtype=np.int32)[None]
    with jax.set_mesh(model.mesh):
        placed = (place(model.mesh, x, TOKENS_BT) for x in (ids, positions))
        _, kv = model.transformer(*placed, None)
    return np.asarray(kv.k[:, 0]), np.asarray(kv.v[:, 0])


def test_a_rebased_context_is_one_that_was_read_there(trained):
    """Exactly: what its tokens see of each other does not depend on where they stand."""
    ids = contexts(trained)[0]
    prefix = trained.read(ids)
    keys = rebased(prefix.kv.k[:, : len(ids)], 700, trained.config.rope)
    want_keys, want_values = at_positions(trained, ids, 700)
    scale = np.abs(want_keys).max()
    np.testing.assert_allclose(keys, want_keys, atol=2e-5 * scale)
    np.testing.assert_allclose(prefix.kv.v[:, : len(ids)], want_values, atol=2e-5 * scale)


def test_the_factor_of_yarn_is_not_applied_twice(trained):
    scaling = YarnScaling(4.0, 512, 1.3, 32.0, 1.0, True)
    rope = dataclasses.replace(trained.config.rope, scaling=scaling)
    keys = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 64)), jnp.float32)
    turned = rebased(keys, 37, rope)
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(keys, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(rebased(turned, -37, rope), keys, atol=1e-5)


def test_where_composed_contexts_stand(trained):
    L, K, H = 2, 2, 8
    rng = np.random.default_rng(0)

    def prefix(length, positions):
        k, v = (jnp.asarray(rng.normal(size=(L, length, K, H)), jnp.float32) for _ in range(2))
        return Prefix(KV(k, v), jnp.int32(length), jnp.int32(positions))

    rope = trained.config.rope
    three = [prefix(5, 5), prefix(4, 9), prefix(6, 6)]
    for how, lengths, ends in (
        (Composition(), [5, 3, 5], [5, 8, 5]),
        (Composition(one_sink=False), [5, 4, 6], [5, 9, 6]),
        (Composition(rebase=False, one_sink=False), [5, 4, 6], [5, 4, 0]),  # up to the longest
        (Composition(rebase=False), [5, 3, 5], [5, 4, 0]),
    ):
        joined = composed(trained, three, how)
        assert [int(p.length) for p in joined] == lengths
        assert [int(p.next_position) for p in joined] == ends
        offset = (14 - 2 if how.one_sink else 14) if how.rebase else 0
        cut = how.one_sink * 1
        want = rebased(three[2].kv.k[:, cut:], offset, rope)
        np.testing.assert_allclose(joined[2].kv.k, want, atol=1e-6)
    with pytest.raises(InputError, match="single slot"):
        composed(trained, [prefix(3, 3), prefix(1, 1)], Composition())


def test_composed_is_read_together_but_for_what_the_second_sees_of_the_first(trained):
    """Logits behind two texts: composed, and read as one row in which the second sees itself."""
    import jax

    from cartridges_jax.sharding import TOKENS_BT, place

    first, second = contexts(trained)
    question = trained.render_prompt("Who is it?", has_context=True)
    how = Composition(one_sink=False)
    parts = composed(trained, [trained.read(first), trained.read(second)], how)
    keys, values = (
        jnp.concatenate([p.kv[i][:, : int(p.length)] for p in parts], axis=1) for i in range(2)
    )
    prefix = trained.as_prefix(Cartridge(keys, values))
    got = np.asarray(trained._run(np.asarray([question]), prefix, with_kv=False))[0]
    # The definition: a row of all, where the second text's tokens do not see the first's.
    everything = [*first, *second]
    k1, v1 = at_positions(trained, first, 0)
    k2, v2 = at_positions(trained, second, len(first))
    apart = Cartridge(*(jnp.concatenate(both, axis=1) for both in ((k1, k2), (v1, v2))))
    with jax.set_mesh(trained.mesh):
        ids = place(trained.mesh, np.asarray([question], np.int32), TOKENS_BT)
        positions = np.arange(len(question), dtype=np.int32)[None] + len(everything)
        hidden, _ = trained.transformer(
            ids, place(trained.mesh, positions, TOKENS_BT), None,
            prefix=trained.as_prefix(apart),
        )  # fmt: skip
        want = np.asarray(trained.transformer.logits(hidden))[0]
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())
    # The engine has the same before it, in the pages of two spans.
    whole = [trained.kv_as_cartridge(ids) for ids in (first, second)]
    context = trained.context(whole, how)
    [answer] = trained.generate([question], context, max_new_tokens=1)
    logprobs = want[-1] - np.log(np.exp(want[-1] - want[-1].max()).sum()) - want[-1].max()
    assert answer.token_ids == [int(logprobs.argmax())]
    assert abs(answer.logprobs[0] - logprobs.max()) < 1e-3
    together = np.asarray(trained.logits([*everything, *question]))[-len(question) :]
    assert np.abs(together - want).max() > 1e-3 * np.abs(want).max()  # what composing leaves out
