"""Damaged or unsuitable model folders: one clear sentence each."""

import json

import pytest
import safetensors.numpy

from cartridges_jax.errors import InputError
from cartridges_jax.language_model import load_model
from cartridges_jax.models.hub import EMBEDDED_FOLDER


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
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs the field 'factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"architectures": ["MambaForCausalLM"]}, "supported: LlamaForCausalLM, Mistral"),
        ({"rms_norm_eps": None}, "no field 'rms_norm_eps'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"architectures": ["MistralForCausalLM"]}, "sliding_window 4096 is not supported"),
        ({"architectures": ["Qwen3ForCausalLM"], "head_dim": None}, "no field 'head_dim'"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"]},
            "layer_types with .'sliding_attention'. is not supported",
        ),
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
        ("tokenizer.model", None, "no tokenizer.json and no tokenizer.model"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b"[]", "expected an object"),
        ("tokenizer_config.json", b"{}", "neither chat_template.jinja nor a chat_template"),
        ("tokenizer_config.json", b'{"chat_template": "{% for"}', "cannot be parsed"),
        ("model.safetensors", b"1234", "damaged"),
        ("model.safetensors", None, "no model.safetensors"),
    ],
)
def test_files(folder, name, data, words):
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        load_model(folder)


def test_wrong_tensors_are_reported_together(folder):
    change_config(folder, num_hidden_layers=5, vocab_size=2049)
    with pytest.raises(InputError, match=r"missing model\.layers\.4.*embed_tokens.weight is"):
        load_model(folder)


def change_tensor(folder, name, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors[name] = change(tensors[name].copy())
    path.write_bytes(safetensors.numpy.save(tensors))


def test_weights_that_are_not_numbers(folder):
    name = "model.layers.2.mlp.up_proj.weight"

    def spoil(x):
        x[3, 5] = float("nan")
        return x

    change_tensor(folder, name, spoil)
    with pytest.raises(InputError, match=f"{name} holds values that are not finite"):
        load_model(folder)


def test_a_misshapen_tensor(folder):
    change_tensor(folder, "model.norm.weight", lambda x: x[:-1])
    with pytest.raises(InputError, match=r"model.norm.weight is \[127\], config.json says \[128\]"):
        load_model(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "other.safetensors"}}, "other.safetensors, which is not in"),
        ({"weight_map": {"a": "../model.safetensors"}}, "is no safetensors file beside it"),
        ({"weight_map": []}, "has no weight_map"),
    ],
)
def test_a_damaged_index(folder, index, words):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=words):
        load_model(folder)


def test_a_json_tokenizer_that_is_damaged(folder):
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(InputError, match="is not a tokenizer that can be read"):
        load_model(folder)


def test_cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)


def test_the_window_is_kept(embedded):
    with pytest.raises(InputError, match="need 1130 positions, the model's window is 1024"):
        embedded.generate([list(range(3, 1105))], max_new_tokens=28)
