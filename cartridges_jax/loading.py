"""From a name to a model: finds its source, checks its parts against each other, reads it."""

import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cartridges_jax import sharding
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.parts import open_parts
from cartridges_jax.models.weights import Quantization, read_weights
from cartridges_jax.sharding import multiplies_bfloat16


def load_model(
    path: str | os.PathLike[str],
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    quantization: Quantization = "none",
    template_options: dict[str, Any] | None = None,
    fsdp: bool = False,
) -> LanguageModel:
    """Loads a model.

    Args:
      path: "smollm2", a Hugging Face folder (config.json, *.safetensors, tokenizer), a .gguf file,
        or a Hub name, downloaded once: `org/name[@revision]` or `org/name[@revision]:FILE.gguf`.
      dtype: of the matrices, and off CPU of activations and KV too (which a CPU keeps in float32);
        None for bfloat16, but float32 on a CPU without instructions for its products.
      mesh: where it lives; None for the first device.
      quantization: "int8" keeps the matrices in one byte a weight (see `models/int8.py`).
      template_options: variables of the chat template, such as Qwen3's `enable_thinking`.
      fsdp: weights are shared by the devices that share rows, too, and gathered a layer at
        a time (FSDP): for models that do not fit otherwise.

    Raises:
      InputError: if a part of the folder is missing, damaged or unsupported.
    """
    if dtype is None:
        dtype = jnp.bfloat16 if multiplies_bfloat16() else jnp.float32
    if quantization not in ("none", "int8"):
        raise InputError(f"quantization must be 'none' or 'int8', got {quantization!r}")
    try:
        if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            raise TypeError
    except TypeError:
        raise InputError(f"dtype must be one of floats, such as bfloat16, got {dtype!r}") from None
    norm_dtype = jnp.float32 if jax.default_backend() == "cpu" else dtype
    mesh = sharding.local_mesh() if mesh is None else mesh
    parts = open_parts(path, template_options)
    source, config = parts.source, parts.config
    for size, name in ((config.vocab_size, "vocabulary"), (config.mlp_size, "MLP width")):
        if size % mesh.shape[sharding.MODEL]:
            raise InputError(
                f"the model's {name} of {size} cannot be shared by {mesh.shape[sharding.MODEL]} "
                "devices; choose another mesh_model"
            )
    weights_hash = parts.weights_hash  # first: it refuses what cannot be used
    return LanguageModel(
        read_weights(
            source.tensors(),
            source.where,
            config,
            mesh,
            dtype,
            quantization,
            norm_dtype,
            fsdp,
        ),
        parts.tokenizer,
        parts.template,
        mesh,
        name=os.fspath(path),
        weights_hash=weights_hash,
        file=source.file,
    )
