"""Hugging Face model folders: weights in and out, and the fingerprint of what was read.

A folder holds config.json, *.safetensors, tokenizer.model and tokenizer_config.json. Tensors are
read one at a time and put straight onto the mesh with their planned sharding and dtype; all
missing, extra and misshapen tensors are reported together. The names of the two layouts are told
apart in `_hf_tensors` alone.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from cartridges_jax.errors import InputError
from cartridges_jax.models import config as model_config
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.transformer import Transformer, abstract_transformer


@dataclasses.dataclass(frozen=True)
class _HfTensor:
    """Where one Hugging Face tensor lives in ours: leaf path, layer, and how to turn it round."""

    name: str
    path: tuple[str, ...]
    layer: int | None
    hf_shape: tuple[int, ...]
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]


def _hf_tensors(c: ModelConfig) -> Iterator[_HfTensor]:
    """Yields every tensor of a Llama checkpoint. Torch linears are [out, in], ours [in, ...]."""
    D, F, N, K, H = c.hidden_size, c.mlp_size, c.num_heads, c.num_kv_heads, c.head_dim

    def same(x: np.ndarray) -> np.ndarray:
        return x

    def transpose(x: np.ndarray) -> np.ndarray:
        return x.T

    def heads_in(M: int) -> Any:
        return (M * H, D), lambda x: x.T.reshape(D, M, H), lambda x: x.reshape(D, M * H).T

    yield _HfTensor(
        "model.embed_tokens.weight", ("embedding",), None, (c.vocab_size, D), same, same
    )
    yield _HfTensor("model.norm.weight", ("final_norm",), None, (D,), same, same)
    if not c.tie_embeddings:
        yield _HfTensor("lm_head.weight", ("lm_head",), None, (c.vocab_size, D), same, same)
    matrices = {
        "input_layernorm": ("attn_norm", (D,), same, same),
        "self_attn.q_proj": ("wq", *heads_in(N)),
        "self_attn.k_proj": ("wk", *heads_in(K)),
        "self_attn.v_proj": ("wv", *heads_in(K)),
        "self_attn.o_proj": (
            "wo",
            (D, N * H),
            lambda x: x.T.reshape(N, H, D),
            lambda x: x.reshape(N * H, D).T,
        ),
        "post_attention_layernorm": ("mlp_norm", (D,), same, same),
        "mlp.gate_proj": ("w_gate", (F, D), transpose, transpose),
        "mlp.up_proj": ("w_up", (F, D), transpose, transpose),
        "mlp.down_proj": ("w_down", (D, F), transpose, transpose),
    }
    for layer in range(c.num_layers):
        for name, (leaf, shape, to_ours, to_hf) in matrices.items():
            hf_name = f"model.layers.{layer}.{name}.weight"
            yield _HfTensor(hf_name, ("blocks", leaf), layer, shape, to_ours, to_hf)


def read_weights(folder: epath.PathLike, config: ModelConfig, mesh: Mesh, dtype) -> Transformer:
    """Reads the weights of a folder onto `mesh`.

    Host memory holds one stacked leaf at a time beside the placed ones.

    Raises:
      InputError: if files are missing or unreadable, or any tensor is missing, extra, of another
        shape, or not finite; all such tensors are named together.
    """
    folder = epath.Path(folder)
    holder = _tensor_handles(folder)

    expected = list(_hf_tensors(config))
    known = {t.name for t in expected} | {"lm_head.weight"}  # tied checkpoints may repeat the head
    problems = [f"missing {t.name}" for t in expected if t.name not in holder]
    problems += [f"unexpected {n}" for n in holder if n not in known and "rotary_emb" not in n]
    for t in expected:
        if t.name in holder:
            shape = tuple(holder[t.name].get_slice(t.name).get_shape())
            if shape != t.hf_shape:
                problems.append(f"{t.name} is {list(shape)}, config.json says {list(t.hf_shape)}")
    if problems:
        shown = "; ".join(problems[:20]) + (
            f"; and {len(problems) - 20} more" * (len(problems) > 20)
        )
        raise InputError(f"{folder} does not hold the model of its config.json: {shown}")

    with jax.set_mesh(mesh):
        abstract = abstract_transformer(config, dtype)
    leaves: dict[tuple[str, ...], list[_HfTensor]] = {}
    for t in expected:
        leaves.setdefault(t.path, []).append(t)
    state = nnx.state(abstract)
    placed: dict[str, Any] = {"blocks": {}}
    for path, tensors in leaves.items():
        variable: Any = state
        for key in path:
            variable = variable[key]
        parts = [t.to_ours(holder[t.name].get_tensor(t.name)) for t in tensors]
        value = np.stack(parts) if tensors[0].layer is not None else parts[0]
        if not np.isfinite(value.sum(dtype=np.float64)):
            raise InputError(f"{folder}: {tensors[0].name} holds values that are not finite")
        target = placed["blocks"] if path[0] == "blocks" else placed
        sharding = NamedSharding(mesh, variable.get_metadata()["spec"])
        target[path[-1]] = jax.device_put(value.astype(jnp.dtype(dtype)), sharding)
    with jax.set_mesh(mesh):
        return nnx.merge(nnx.graphdef(abstract), placed)


def _tensor_handles(folder: epath.Path) -> dict[str, Any]:
    """Opens the weights files of a folder: the file that holds each tensor, by its name."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"no *.safetensors in {folder}; a Hugging Face model folder has some")
    try:
        opened = [safetensors.safe_open(str(path), framework="numpy") for path in paths]
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"a weights file in {folder} is damaged: {error}") from error
    return {name: handle for handle in opened for name in handle.keys()}  # noqa: SIM118 (a handle has keys but cannot be iterated)


def export_folder(
    folder: epath.PathLike, model: Transformer, tokenizer: Tokenizer, chat_template: str
) -> None:
    """Writes a folder that `read_weights` and transformers load; float32 safetensors."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    tensors = {}
    for t in _hf_tensors(model.config):
        leaf = weights
        for key in t.path:
            leaf = leaf[key]
        value = leaf if t.layer is None else leaf[t.layer]
        tensors[t.name] = np.ascontiguousarray(t.to_hf(value), np.float32)
    data = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(data)
    fields = model_config.to_hf_fields(model.config)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer.serialized())
    tokenizer_fields = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "chat_template": chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_fields, indent=2) + "\n")


def weights_fingerprint(folder: epath.PathLike) -> str:
    """sha256 over sorted (name, dtype, shape, bytes) of the tensors, whatever files hold them."""
    digest = hashlib.sha256()
    handles = _tensor_handles(epath.Path(folder))
    for name in sorted(handles):
        value = handles[name].get_tensor(name)
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
