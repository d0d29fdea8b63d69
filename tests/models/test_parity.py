"""Our Llama port against transformers, on tiny random models made on the spot."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")

from cartridges_jax.errors import InputError
from cartridges_jax.language_model import EMBEDDED_FOLDER, load_model
from cartridges_jax.models import hf
from cartridges_jax.models.generate import generate_ids

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "gqa": {"num_key_value_heads": 2},
    "mqa, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "mha, llama3 scaling": {"num_key_value_heads": 6, "rope_parameters": LLAMA3},
    "k = 3, wide heads": {"num_key_value_heads": 3, "head_dim": 20},
}


def make_folder(folder, **options):
    """Saves a random Llama with odd constants, and our tokenizer beside it."""
    torch.manual_seed(0)
    rope = {"rope_theta": 3e4, "rope_type": "default"} | options.pop("rope_parameters", {})
    fields = {
        "vocab_size": 2048, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "head_dim": 12, "rms_norm_eps": 3e-5, "rope_parameters": rope,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = transformers.LlamaConfig(**(fields | options))
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms of ones would hide mistakes
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED_FOLDER / name).read_bytes())
    return model


@pytest.fixture(params=CASES, scope="module")
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    theirs = make_folder(folder, **CASES[request.param])
    return theirs, load_model(folder, dtype=jnp.float32), folder


def test_logits(pair, rng):
    theirs, ours, _ = pair
    ids = rng.integers(3, 2048, (2, 150))
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    got = np.asarray(ours.logits(ids))
    assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_greedy_generation_of_a_padded_batch(pair, rng):
    theirs, ours, _ = pair
    prompts = [rng.integers(3, 2048, n).tolist() for n in (5, 40, 21)]
    sampled = generate_ids(
        ours.transformer, prompts, prefix=None, max_new_tokens=64, temperature=0.0,
        seeds=[0, 0, 0], stop_ids=(), mesh=ours.mesh,
    )  # fmt: skip
    for prompt, got in zip(prompts, sampled.token_ids, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
            )
        np.testing.assert_array_equal(got, out[0, len(prompt) :].numpy())


def test_export_is_loaded_by_transformers(pair, tmp_path, rng):
    theirs, ours, _ = pair
    hf.export_folder(tmp_path, ours.transformer, ours.tokenizer, ours.template.source)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor(rng.integers(3, 2048, (1, 30)))
    with torch.no_grad():
        np.testing.assert_array_equal(again(ids).logits.numpy(), theirs(ids).logits.numpy())
    assert hf.weights_fingerprint(tmp_path) == ours.identity["weights"]


def test_unsupported_fields_are_named(tmp_path):
    make_folder(tmp_path, num_key_value_heads=2)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    bad = {
        "rope type 'yarn'": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "attention_bias": {"attention_bias": True},
        "hidden_act 'gelu'": {"hidden_act": "gelu"},
        "architectures": {"architectures": ["MambaForCausalLM"]},
        "rms_norm_eps": {"rms_norm_eps": None},
    }
    for words, change in bad.items():
        path.write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=words):
            load_model(tmp_path)


def test_wrong_tensors_are_reported_together(tmp_path):
    make_folder(tmp_path, num_key_value_heads=2)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 4, "vocab_size": 2049})
    )
    with pytest.raises(
        InputError, match=r"missing model\.layers\.3.*embed_tokens|embed_tokens.*missing"
    ):
        load_model(tmp_path)
