"""A model as a Hugging Face folder: what `load_model` and transformers read back."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from cartridges_jax import files
from cartridges_jax.models.config import FAMILIES, ModelConfig
from cartridges_jax.models.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from cartridges_jax.models.transformer import Transformer
from cartridges_jax.models.weights import Leaf, find_leaf, leaves


def export_folder(
    folder: epath.PathLike, model: Transformer, tokenizer: Mapping[str, bytes], chat_template: str
) -> None:
    """Writes the folder: weights in float32, the tokenizer's files as they are given.

    Raises:
      ValueError: if the weights are int8, which would not come back as they were.
    """
    if model.is_quantized:
        raise ValueError("a model loaded as int8 cannot be exported; load it unquantized")
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.numpy.save(as_hf_tensors(model), metadata={"format": "pt"})
    written = {
        "model.safetensors": weights,
        "config.json": (json.dumps(config_fields(model.config), indent=2) + "\n").encode(),
        "chat_template.jinja": chat_template.encode(),
        **tokenizer,
    }
    for name, data in written.items():
        files.write_bytes(folder / name, data)


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of a `config.json` that transformers reads as the same model."""
    architecture = next(name for name, family in FAMILIES.items() if family == config.family)
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_parameters": _rope_fields(config.rope),
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "dtype": "float32",
    }
    if config.family in ("llama", "qwen3"):
        fields["attention_bias"] = config.qkv_bias
    if config.family == "llama":
        fields["mlp_bias"] = config.mlp_bias
    if config.family == "mistral":
        fields["sliding_window"] = None
    return fields


def _rope_fields(rope: Rope) -> dict[str, Any]:
    kinds = {LinearScaling: "linear", Llama3Scaling: "llama3", YarnScaling: "yarn"}
    fields: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.scaling is not None:
        fields |= {"rope_type": kinds[type(rope.scaling)], **dataclasses.asdict(rope.scaling)}
    return fields


def as_hf_tensors(model: Transformer) -> dict[str, np.ndarray]:
    """The weights in float32, by Hugging Face name and in that layout."""
    tensors = {}
    for leaf in leaves(model.config):
        parent, attribute = find_leaf(model, leaf.path)
        value = np.asarray(getattr(parent, attribute)[...], np.float32)
        for name, layer in zip(leaf.names, value if leaf.stacked else [value], strict=True):
            tensors[name] = np.ascontiguousarray(to_hf(leaf, layer))
    return tensors


def to_hf(leaf: Leaf, array: np.ndarray) -> np.ndarray:
    """Turns one layer of ours into their layout."""
    order = "".join(leaf.hf_axes)
    return array.transpose([leaf.axes.index(a) for a in order]).reshape(leaf.hf_shape)
