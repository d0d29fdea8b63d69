"""Our port against transformers, layer by layer, on tiny random models made on the spot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")

from cartridges_jax.attention import Mask, attention
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.loading import load_model
from cartridges_jax.models.fingerprint import weights_fingerprint
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.transformer import rms_norm
from cartridges_jax.sharding import TOKENS_BT, place
from experiments.export import export_folder
from tests.conftest import TEST_MODEL

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CASES = {
    "llama, gqa": ("Llama", {"num_key_value_heads": 2}),
    "llama, K = 1, tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, K = N, llama3": ("Llama", {"num_key_value_heads": 6, "rope_parameters": LLAMA3}),
    "llama, K = 3, all biases": (
        "Llama",
        {"num_key_value_heads": 3, "head_dim": 20, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral, linear": (
        "Mistral",
        {
            "num_key_value_heads": 2,
            "sliding_window": None,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0},
        },
    ),
    "qwen2, yarn": ("Qwen2", {"num_key_value_heads": 2, "rope_parameters": YARN}),
    "qwen2, yarn, odd": (
        "Qwen2",
        {
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            "rope_parameters": YARN
            | {"beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False},
        },
    ),
    "qwen3": ("Qwen3", {"num_key_value_heads": 3, "head_dim": 20}),
    "qwen3, biases, tied": (
        "Qwen3",
        {"num_key_value_heads": 1, "head_dim": 8}
        | {"tie_word_embeddings": True, "attention_bias": True},
    ),
}


def make_folder(folder, family, options):
    """Saves a random model with odd constants, and our tokenizer beside it."""
    torch.manual_seed(0)
    rope = {"rope_theta": 3e4, "rope_type": "default"} | options.get("rope_parameters", {})
    fields = {
        "vocab_size": 3584, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "head_dim": 12, "rms_norm_eps": 3e-5,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(
        **(fields | options | {"rope_parameters": rope})
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms of ones would hide mistakes
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((TEST_MODEL / name).read_bytes())
    return model


@pytest.fixture(params=CASES, scope="module")
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    theirs = make_folder(folder, *CASES[request.param])
    return theirs, load_model(folder, dtype=jnp.float32), folder


def assert_close(got, want, bound=2e-4):
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


def on_mesh(ours, array):
    return place(ours.mesh, np.asarray(array, np.int32), TOKENS_BT)


def hidden_states(ours: LanguageModel, ids: np.ndarray) -> list[jax.Array]:
    """The input of every block and the normed output, as transformers lists them."""
    model = ours.transformer
    turn = model.turn(on_mesh(ours, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)))
    x = model.embedding(on_mesh(ours, ids), model.dtype)
    states = [x]
    for layer in range(model.config.num_layers):
        block = jax.tree.map(lambda w, layer=layer: w[layer], model.blocks)
        q, k, v = block.qkv(x, turn)
        start = on_mesh(ours, np.zeros_like(ids))
        attended = attention(q, k, v, Mask(start), scale=model.config.head_dim**-0.5)
        x = block.mlp(block.attention_output(x, attended))
        states.append(x)
    states[-1] = rms_norm(states[-1], model.final_norm[...], model.config.norm_eps)
    return states


def test_every_layer(pair, rng):
    theirs, ours, _ = pair
    ids = rng.integers(3, 2048, (2, 150))
    with torch.no_grad():
        want = theirs(torch.tensor(ids), output_hidden_states=True).hidden_states
    with jax.set_mesh(ours.mesh):
        got = hidden_states(ours, ids)
    assert len(got) == len(want) == 4
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


def test_logits(pair, rng):
    theirs, ours, _ = pair
    ids = rng.integers(3, 2048, (2, 300))  # beyond the original windows of the scalings
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    got = np.asarray(ours.logits(ids))
    assert_close(got, want)
    np.testing.assert_array_equal(got.argmax(-1), want.argmax(-1))


def test_bfloat16(pair, rng):
    """Within 8 % of the logits' scale, as far as transformers in bfloat16 is from float32."""
    theirs, _, folder = pair
    ours = load_model(folder, dtype=jnp.bfloat16)
    ids = rng.integers(3, 2048, (2, 100))
    with torch.no_grad():
        want = theirs(torch.tensor(ids)).logits.numpy()
    assert_close(ours.logits(ids), want, bound=8e-2)


def test_greedy_generation_of_a_padded_batch(pair, rng):
    theirs, ours, _ = pair
    prompts = [rng.integers(3, 2048, n).tolist() for n in (5, 40, 21)]
    answers = ours.generate(prompts, max_new_tokens=64, stop_token_ids=())
    for prompt, got in zip(prompts, answers, strict=True):
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
            )
        np.testing.assert_array_equal(got.token_ids, out[0, len(prompt) :].numpy())


def test_export_is_loaded_by_transformers(pair, tmp_path, rng):
    theirs, ours, folder = pair
    tokenizer = {path.name: path.read_bytes() for path in folder.glob("tokenizer*")}
    export_folder(tmp_path, ours.transformer, tokenizer, ours.template.source)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(theirs)
    ids = torch.tensor(rng.integers(3, 2048, (1, 300)))
    with torch.no_grad():
        np.testing.assert_array_equal(again(ids).logits.numpy(), theirs(ids).logits.numpy())
    assert weights_fingerprint(FolderSource(tmp_path)) == weights_fingerprint(FolderSource(folder))
    assert load_model(tmp_path).fingerprint == ours.fingerprint
