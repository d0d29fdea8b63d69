"""Damaged or unsuitable model folders: one clear sentence each."""

import json

import pytest
import safetensors.numpy

from cartridges_jax.errors import InputError
from cartridges_jax.info import describe
from cartridges_jax.loading import load_model
from cartridges_jax.models.config import read_config
from cartridges_jax.models.rope import YarnScaling
from cartridges_jax.models.sources.folder import FolderSource
from tests.conftest import CHAT_TEMPLATE, TEST_MODEL


@pytest.fixture
def folder(tmp_path):
    """The trained model with its SentencePiece file alone, and all settings in one file."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (tmp_path / name).write_bytes((TEST_MODEL / name).read_bytes())
    fields = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": CHAT_TEMPLATE}
    fields |= {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    return tmp_path


def refuses(folder, words):
    """Loading and `info` do, in the same words."""
    with pytest.raises(InputError, match=words) as loading:
        load_model(folder)
    with pytest.raises(InputError) as telling:
        describe(folder)
    assert str(telling.value) == str(loading.value)


_ORIGINAL = "original_max_position_embeddings"


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_parameters": "x", "rope_scaling": None}, "wrong type"),
        ({"num_attention_heads": "4"}, "config.json"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be a number above 1"),
        ({"max_position_embeddings": -5}, "max_position_embeddings must be a whole number"),
        ({"num_key_value_heads": 3}, "3 kv heads do not divide 4 heads"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs the field 'factor'"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 0}},
            "factor of rope must be above 0",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0} | {_ORIGINAL: -5}},
            "must be above 0, got -5",
        ),
        ({"num_hidden_layers": 4.0}, "num_hidden_layers must be a whole number above 0, got 4.0"),
        ({"head_dim": 31}, "head_dim 31 is odd"),
        ({"eos_token_id": "x"}, "'x' is no token of the 3584"),
        ({"eos_token_id": [2, None]}, "None is no token of the 3584"),
        ({"eos_token_id": [[1]]}, "is no token of the 3584"),
        ({"rms_norm_eps": 10**400}, "wrong type"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}},
            "beta_fast of rope must be above 0",
        ),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
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
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True},
            "sliding_window 4096 is not supported",
        ),
    ],
)
def test_config(folder, fields, words):
    change_config(folder, **fields)
    refuses(folder, words)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "expected an object"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("config.json", None, "no config.json"),
        ("tokenizer.model", b"", "SentencePiece"),
        ("tokenizer.model", b"nonsense", "SentencePiece"),
        ("tokenizer.model", None, "no tokenizer.json and no tokenizer.model"),
        ("generation_config.json", b'{"eos_token_id": "foo"}', "'foo' is no token of"),
        ("chat_template.jinja", b"\xff\xfe", "cannot be read"),
        ("added_tokens.json", b'{"<|new|>": 3584}', r"does not have the tokens \['<\|new\|>'\]"),
        (
            "tokenizer_config.json",
            b'{"eos_token": "</s>"}',
            "eos_token is '</s>' in tokenizer_conf",
        ),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b"[]", "expected an object"),
        ("tokenizer_config.json", b"{}", "neither chat_template.jinja nor a chat_template"),
        ("tokenizer_config.json", b'{"chat_template": "{% for"}', "cannot be parsed"),
        ("model.safetensors", b"1234", "damaged"),
        ("model.safetensors", None, "no model.safetensors"),
    ],
)
def test_files(folder, name, data, words):
    (folder / name).unlink(missing_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    refuses(folder, words)


def test_wrong_tensors_are_reported_together(folder):
    change_config(folder, num_hidden_layers=7, vocab_size=3585)
    refuses(folder, r"missing model\.layers\.6.*embed_tokens.weight is")


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
    refuses(folder, f"{name} holds values that are not finite")


def test_a_head_that_is_not_the_embedding_it_is_tied_to(folder):
    """Transformers then takes the head, and only warns."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    assert read_config(folder).tie_embeddings
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    path.write_bytes(safetensors.numpy.save(tensors))
    load_model(folder)
    tensors["lm_head.weight"][-1, -1] += 1
    path.write_bytes(safetensors.numpy.save(tensors))
    refuses(folder, "set tie_word_embeddings to false")


def test_the_whole_file_goes_before_an_index(folder):
    """As for transformers; the index may be left of an earlier save."""
    index = {"weight_map": {"a": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert FolderSource(folder).weight_files() == [str(folder / "model.safetensors")]
    assert load_model(folder).config == read_config(folder)


def test_a_misshapen_tensor(folder):
    size = read_config(folder).hidden_size
    change_tensor(folder, "model.norm.weight", lambda x: x[:-1])
    words = rf"model.norm.weight is \[{size - 1}\], the config says \[{size}\]"
    refuses(folder, words)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "other.safetensors"}}, "other.safetensors, which is not in"),
        ({"weight_map": {"a": "../model.safetensors"}}, "is no safetensors file beside it"),
        ({"weight_map": []}, "has no weight_map"),
    ],
)
def test_a_damaged_index(folder, index, words):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(folder, words)


def test_a_json_tokenizer_that_is_damaged(folder):
    (folder / "tokenizer.json").write_text('{"model": 1}')
    refuses(folder, "is not a tokenizer that can be read")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "INT8"}, "quantization must be 'none' or 'int8', got 'INT8'"),
        ({"dtype": "fp16"}, "dtype must be one of floats"),
        ({"dtype": "int8"}, "dtype must be one of floats"),
    ],
)
def test_options_of_loading(options, words):
    with pytest.raises(InputError, match=words):
        load_model.__wrapped__(TEST_MODEL, **options)  # without the test suite's own type checks


def test_ids_of_another_vocabulary(tiny):
    for call in (tiny.logits, tiny.kv_as_cartridge, lambda ids: tiny.generate([ids])):
        with pytest.raises(InputError, match="token id 999999 is none of the 3584"):
            call([1, 999999])


def test_yarn_stretches_the_window(folder):
    yarn = {"rope_type": "yarn", "factor": 4.0, _ORIGINAL: 1024}
    rope = {"rope_parameters": {"rope_theta": 1e5}, "rope_scaling": yarn, "rope_theta": 1e5}
    change_config(folder, max_position_embeddings=1024, **rope)
    config = read_config(folder)
    assert isinstance(
        config.rope.scaling, YarnScaling
    )  # the older spelling counts, as in transformers
    assert (config.max_position_embeddings, config.window) == (1024, 4096)


def test_cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refuses(folder, "damaged")


def test_the_window_is_kept(trained):
    with pytest.raises(InputError, match="need 2130 positions, the model's window is 2048"):
        trained.generate([list(range(3, 2105))], max_new_tokens=28)
