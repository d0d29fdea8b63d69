"""Cartridges by name: loaded once, let go by least use, found when their files change."""

import jax.numpy as jnp
import numpy as np
import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.engine.store import CartridgeStore
from cartridges_jax.errors import InputError
from tests.conftest import make_tiny_model


@pytest.fixture
def folder(tmp_path, tiny):
    for i, name in enumerate("abc"):
        where = tmp_path / name if name == "c" else tmp_path
        where.mkdir(exist_ok=True)
        save(where / f"{name}.cartridge", i, tiny)
    return tmp_path


def save(path, seed, model, layers=3):
    k, v = np.random.default_rng(seed).normal(size=(2, layers, 5, 4, 10))
    Cartridge(
        jnp.asarray(k, jnp.float32),
        jnp.asarray(v, jnp.float32),
        provenance={"model": model.identity},
    ).save(path)


SIZE = 2 * 3 * 5 * 4 * 10 * 4


def test_the_least_used_is_let_go_and_the_pinned_stays(tiny, folder):
    store = CartridgeStore(folder, tiny.context, 2 * SIZE)
    assert sorted(store.paths()) == ["a", "b", "c"]
    first = store.context("a")
    assert store.context("a") is first and store.counts.loads == 1 and store.counts.hits == 1
    store.context("b")
    store.context("a")
    store.context("c")
    assert store.loaded == ["a", "c"] and store.counts.evictions == 1
    store.pin("a")
    store.context("b")
    store.context("c")
    assert store.loaded == ["a", "c"] and store.counts.load_seconds > 0
    store.unload("a")
    with pytest.raises(InputError, match="'a' is not loaded"):
        store.unload("a")
    assert store.context("a") is not first


def test_answers_follow_what_the_file_says_now(tiny, folder):
    store = CartridgeStore(folder, tiny.context, 10 * SIZE)

    def answer(*names):
        return tiny.generate([[1, 2, 3]], store.context(*names), max_new_tokens=8)[0].token_ids

    before = answer("a")
    assert before == tiny.generate([[1, 2, 3]], Cartridge.load(folder / "a.cartridge"),
                                   max_new_tokens=8)[0].token_ids  # fmt: skip
    assert answer("a", "b") != before or answer("b", "a") != before
    assert store.context("a", "b").num_slots == 5 + 4  # one sink
    save(folder / "a.cartridge", 77, tiny)
    assert answer("a") != before or store.counts.loads == 3
    assert store.counts.loads == 3  # a, b, and a again


@pytest.mark.parametrize("name", ["d", "../a", "a.cartridge", "/etc/passwd", "c/c", ""])
def test_only_names_of_the_folder_are_cartridges(tiny, folder, name):
    store = CartridgeStore(folder, tiny.context, SIZE)
    with pytest.raises(InputError, match="there are: a, b, c"):
        store.context(name)


def test_a_cartridge_of_another_model_is_refused(folder):
    model = make_tiny_model()
    save(folder / "other.cartridge", 0, model, layers=2)
    store = CartridgeStore(folder, model.context, 10 * SIZE)
    with pytest.raises(InputError, match="has 2 layers"):
        store.context("other")
