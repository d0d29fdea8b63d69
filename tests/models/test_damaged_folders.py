"""Damaged or unsuitable model folders: one clear sentence each."""

import json

import pytest

from cartridges_jax.errors import InputError
from cartridges_jax.language_model import EMBEDDED_FOLDER, load_model


@pytest.fixture
def folder(tmp_path):
    for file in EMBEDDED_FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_parameters": "x", "rope_scaling": None}, "wrong type"),
        ({"num_attention_heads": "4"}, "config.json"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be a number above 0"),
        ({"max_position_embeddings": -5}, "max_position_embeddings must be a number above 0"),
        ({"num_key_value_heads": 3}, "3 kv heads do not divide 4 heads"),
    ],
)
def test_config(folder, fields, words):
    change_config(folder, **fields)
    with pytest.raises(InputError, match=words):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "expected an object"),
        ("config.json", None, "no config.json"),
        ("tokenizer.model", b"", "SentencePiece"),
        ("tokenizer.model", b"nonsense", "SentencePiece"),
        ("tokenizer.model", None, "no tokenizer.model"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b"[]", "no chat_template"),
        ("tokenizer_config.json", b'{"chat_template": "{% for"}', "cannot be parsed"),
        ("model.safetensors", b"1234", "damaged"),
        ("model.safetensors", None, "no \\*.safetensors"),
    ],
)
def test_files(folder, name, data, words):
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        load_model(folder)


def test_cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)


def test_the_window_is_kept(embedded):
    with pytest.raises(InputError, match="need 1130 positions, the model's window is 1024"):
        embedded.generate([list(range(3, 1105))], max_new_tokens=28)
