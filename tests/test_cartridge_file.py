"""The .cartridge file: identity, refusal on another model, damage."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cartridges_jax import Cartridge, InputError
from tests.conftest import make_tiny_model


@pytest.fixture
def cartridge(tiny, rng):
    shape = (3, 6, 4, 10)
    return Cartridge(
        jnp.asarray(rng.normal(size=shape), jnp.float32),
        jnp.asarray(rng.normal(size=shape), jnp.float32),
        num_frozen=2,
        next_position=41,
        provenance={"model": tiny.identity, "corpus": [{"name": "a", "sha256": "b"}]},
    )


def test_what_is_saved_is_loaded(cartridge, tmp_path):
    cartridge.save(tmp_path / "a.cartridge")
    loaded = Cartridge.load(tmp_path / "a.cartridge")
    np.testing.assert_array_equal(loaded.keys, cartridge.keys)
    np.testing.assert_array_equal(loaded.values, cartridge.values)
    assert (loaded.num_frozen, loaded.num_slots, loaded.next_position) == (2, 6, 41)
    assert loaded.provenance == cartridge.provenance
    assert [p.name for p in tmp_path.iterdir()] == ["a.cartridge"]  # no temporary file is left


def test_bfloat16_slots_are_saved_and_loaded(cartridge, tmp_path):
    half = cartridge.with_provenance(jnp.bfloat16, cartridge.provenance)
    half.save(tmp_path / "a.cartridge")
    loaded = Cartridge.load(tmp_path / "a.cartridge")
    assert loaded.keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded.keys, half.keys)


def test_a_file_that_names_no_model_is_refused(cartridge, tmp_path):
    Cartridge(cartridge.keys, cartridge.values).save(tmp_path / "a.cartridge")
    with pytest.raises(InputError, match="does not say which model"):
        Cartridge.load(tmp_path / "a.cartridge")


def test_real_kv_belongs_to_its_model_too(tmp_path):
    model = make_tiny_model()
    model.kv_as_cartridge(range(3, 9)).save(tmp_path / "a.cartridge")
    model.identity["weights"] = "fine-tuned"
    with pytest.raises(InputError, match="weights differs"):
        model.logits([1, 2], Cartridge.load(tmp_path / "a.cartridge"))


def test_next_position_moves_the_queries(tiny, cartridge):
    other = Cartridge(cartridge.keys, cartridge.values, next_position=6)
    ids = np.arange(5, 25)
    assert np.abs(np.asarray(tiny.logits(ids, cartridge) - tiny.logits(ids, other))).max() > 1e-3


@pytest.mark.parametrize("part", ["weights", "tokenizer", "chat_template", "rope", "config"])
def test_another_model_is_refused_by_what_differs(tiny, cartridge, part):
    model = make_tiny_model()
    model.identity[part] = "another"
    words = {"chat_template": "chat template", "rope": "rotary", "config": "configuration"}
    with pytest.raises(InputError, match=words.get(part, part)):
        model.generate(["Who?"], cartridge, max_new_tokens=1)


def test_another_dtype_is_only_a_warning(cartridge, caplog):
    model = make_tiny_model()
    model.identity["dtype"] = "bfloat16"
    model.check_cartridge(cartridge)
    assert "its dtype was float32, is now bfloat16" in caplog.text


def test_another_shape_is_refused(trained, cartridge):
    with pytest.raises(InputError, match=r"3 layers, 4 kv heads of size 10"):
        trained.logits([1, 2], cartridge)


def test_a_cut_file_is_refused(cartridge, tmp_path):
    path = tmp_path / "a.cartridge"
    cartridge.save(path)
    data = path.read_bytes()
    for size in (0, 5, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="not a whole cartridge file"):
            Cartridge.load(path)


def test_other_files_are_refused(cartridge, tmp_path):
    path = tmp_path / "a.cartridge"
    keys = np.ones((1, 2, 3, 4), np.float32)
    good = {"format_version": 1, "num_frozen": 0, "next_position": 2, "provenance": {}}
    headers = {
        "not a whole cartridge": None,
        "num_frozen": {"format_version": 1},
        "format 9": {"format_version": 9, "num_frozen": 0, "next_position": 2, "provenance": {}},
        "no JSON object": [],
        "-1 frozen of 2 slots": good | {"num_frozen": -1},
        "3 frozen of 2 slots": good | {"num_frozen": 3},
        "next position -7": good | {"next_position": -7},
        "next position 1099511627776": good | {"next_position": 2**40},
        "a model of another form": good | {"provenance": {"model": []}},
        "has a model of": good | {"provenance": {"model": {"weights": 3}}},
        "a corpus of another form": good | {"provenance": {"corpus": "abc"}},
        "has a corpus of": good | {"provenance": {"corpus": [{}]}},
    }
    for words, header in headers.items():
        metadata = None if header is None else {"cartridge": json.dumps(header)}
        path.write_bytes(safetensors.numpy.save({"keys": keys, "values": keys}, metadata=metadata))
        with pytest.raises(InputError, match=words):
            Cartridge.load(path)
    metadata = {"cartridge": json.dumps(good)}
    slots = {"keys": keys.astype(np.int32), "values": keys.astype(np.int32)}
    path.write_bytes(safetensors.numpy.save(slots, metadata=metadata))
    with pytest.raises(InputError, match="'I32'"):
        Cartridge.load(path)
    nested = {"cartridge": "[" * 100_000 + "]" * 100_000}
    path.write_bytes(safetensors.numpy.save({"keys": keys, "values": keys}, metadata=nested))
    with pytest.raises(InputError, match="not a whole cartridge"):
        Cartridge.load(path)
    for missing in (tmp_path / "none.cartridge", tmp_path):
        with pytest.raises(InputError, match="there is no cartridge file"):
            Cartridge.load(missing)


def test_values_that_are_not_finite_are_refused(cartridge, tmp_path):
    broken = Cartridge(cartridge.keys.at[0, 0].set(jnp.nan), cartridge.values)
    broken.save(tmp_path / "a.cartridge")
    with pytest.raises(InputError, match="not finite"):
        Cartridge.load(tmp_path / "a.cartridge")
