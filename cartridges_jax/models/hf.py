"""Hugging Face model folders: weights in and out.

A folder holds config.json, *.safetensors, a tokenizer and its chat template. Weights are read
lazily, slice by slice: each device's part of each leaf goes straight to it with the planned
sharding and dtype, so the host holds one leaf beside what is placed. All missing, extra and
misshapen tensors are reported together. How the two layouts correspond is told by `_TENSORS` alone.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from cartridges_jax import files
from cartridges_jax.errors import InputError
from cartridges_jax.metrics import progress
from cartridges_jax.models import config as model_config
from cartridges_jax.models import int8
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.transformer import (
    Embedding,
    Linear,
    Transformer,
    abstract_transformer,
)

Quantization = Literal["none", "int8"]

_EMBEDDING = "model.embed_tokens.weight"
_ROWS = 4096  # of a matrix, compared at a time

# Hugging Face name: (our path, their axes, our axes). A group of letters is one merged axis of
# theirs: torch keeps [out, in] matrices, with heads and head_dim in one.
_TENSORS = {
    _EMBEDDING: ("embedding.weight", "V D", "VD"),
    "lm_head.weight": ("lm_head.weight", "V D", "VD"),
    "model.norm.weight": ("final_norm", "D", "D"),
    "model.layers.#.input_layernorm.weight": ("blocks.attn_norm", "D", "D"),
    "model.layers.#.self_attn.q_proj.weight": ("blocks.q.weight", "NH D", "DNH"),
    "model.layers.#.self_attn.k_proj.weight": ("blocks.k.weight", "KH D", "DKH"),
    "model.layers.#.self_attn.v_proj.weight": ("blocks.v.weight", "KH D", "DKH"),
    "model.layers.#.self_attn.q_proj.bias": ("blocks.q.bias", "NH", "NH"),
    "model.layers.#.self_attn.k_proj.bias": ("blocks.k.bias", "KH", "KH"),
    "model.layers.#.self_attn.v_proj.bias": ("blocks.v.bias", "KH", "KH"),
    "model.layers.#.self_attn.q_norm.weight": ("blocks.q_norm", "H", "H"),
    "model.layers.#.self_attn.k_norm.weight": ("blocks.k_norm", "H", "H"),
    "model.layers.#.self_attn.o_proj.weight": ("blocks.o.weight", "D NH", "NHD"),
    "model.layers.#.self_attn.o_proj.bias": ("blocks.o.bias", "D", "D"),
    "model.layers.#.post_attention_layernorm.weight": ("blocks.mlp_norm", "D", "D"),
    "model.layers.#.mlp.gate_proj.weight": ("blocks.gate.weight", "F D", "DF"),
    "model.layers.#.mlp.up_proj.weight": ("blocks.up.weight", "F D", "DF"),
    "model.layers.#.mlp.down_proj.weight": ("blocks.down.weight", "D F", "FD"),
    "model.layers.#.mlp.gate_proj.bias": ("blocks.gate.bias", "F", "F"),
    "model.layers.#.mlp.up_proj.bias": ("blocks.up.bias", "F", "F"),
    "model.layers.#.mlp.down_proj.bias": ("blocks.down.bias", "D", "D"),
}


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One of our arrays and the Hugging Face tensors that it is made of, one for each layer."""

    names: tuple[str, ...]
    path: str
    hf_axes: tuple[str, ...]
    axes: str
    sizes: dict[str, int]

    @property
    def stacked(self) -> bool:
        return self.path.startswith("blocks.")

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(_product(self.sizes[a] for a in group) for group in self.hf_axes)

    @property
    def size(self) -> int:
        return len(self.names) * _product(self.hf_shape)

    def read(self, tensor: Any, parts: dict[str, tuple[int, int]]) -> np.ndarray:
        """Reads the part of a tensor that lies within `parts`, a range for each axis, as ours."""
        cuts, sizes = [], []
        for group in self.hf_axes:
            # Only the first axis of a merged group is ever split over devices.
            inner = _product(self.sizes[a] for a in group[1:])
            start, stop = parts[group[0]]
            cuts.append(slice(start * inner, stop * inner))
            sizes += [parts[a][1] - parts[a][0] for a in group]
        order = "".join(self.hf_axes)
        return tensor[tuple(cuts)].reshape(sizes).transpose([order.index(a) for a in self.axes])

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Turns one layer of ours into their layout."""
        order = "".join(self.hf_axes)
        return array.transpose([self.axes.index(a) for a in order]).reshape(self.hf_shape)


def _product(numbers: Any) -> int:
    return int(np.prod(list(numbers), dtype=np.int64))


def _leaves(config: ModelConfig) -> Iterator[_Leaf]:
    """Yields every array of a model with this config."""
    has = {
        "lm_head": not config.tie_embeddings,
        "q_norm": config.qk_norm,
        "k_norm": config.qk_norm,
        "q.bias": config.qkv_bias,
        "k.bias": config.qkv_bias,
        "v.bias": config.qkv_bias,
        "o.bias": config.output_bias,
        "gate.bias": config.mlp_bias,
        "up.bias": config.mlp_bias,
        "down.bias": config.mlp_bias,
    }
    for name, (path, hf_axes, axes) in _TENSORS.items():
        option = path.removeprefix("blocks.").removesuffix(".weight")
        if has.get(option, True):
            stacked = path.startswith("blocks.")
            layers = range(config.num_layers) if stacked else (0,)
            names = tuple(name.replace("#", str(layer)) for layer in layers)
            yield _Leaf(names, path, tuple(hf_axes.split()), axes, config.sizes)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a Hugging Face checkpoint, by its name."""
    return {name: leaf.hf_shape for leaf in _leaves(config) for name in leaf.names}


def read_weights(
    folder: epath.PathLike,
    config: ModelConfig,
    mesh: Mesh,
    dtype: Any,
    quantization: Quantization = "none",
) -> Transformer:
    """Reads the weights of a folder onto `mesh`.

    The largest leaves come first, so that the host's peak is the model and a fraction, not the
    model and its largest leaf. With `quantization="int8"` each leaf is rounded on its devices
    before the next one is read.

    Raises:
      InputError: if files are missing or unreadable, or any tensor is missing, extra, of another
        shape, or not finite; all such tensors are named together.
    """
    folder = epath.Path(folder)
    holder = tensor_handles(folder)
    leaves = sorted(_leaves(config), key=lambda leaf: -leaf.size)
    _check_names(folder, holder, config)
    with jax.set_mesh(mesh):
        model = abstract_transformer(config, dtype)
        bar = progress(sum(leaf.size for leaf in leaves), "load", " weights", scaled=True)
        for leaf in leaves:
            parent, attribute = _find(model, leaf.path)
            spec = getattr(parent, attribute).get_metadata()["spec"]
            value = _place(leaf, holder, config, NamedSharding(mesh, spec), jnp.dtype(dtype))
            _check_finite(folder, leaf, value)
            setattr(parent, attribute, nnx.Param(value, spec=spec))
            is_matrix = isinstance(parent, Linear | Embedding) and attribute == "weight"
            if quantization == "int8" and is_matrix:
                int8.quantize(parent)
            bar.update(leaf.size)
        bar.close()
    return model


def _find(model: Transformer, path: str) -> tuple[Any, str]:
    """The module that holds a leaf, and the leaf's name in it."""
    *parents, attribute = path.split(".")
    module: Any = model
    for name in parents:
        module = getattr(module, name)
    return module, attribute


def _place(
    leaf: _Leaf,
    holder: dict[str, Any],
    config: ModelConfig,
    sharding: NamedSharding,
    dtype: np.dtype,
) -> jax.Array:
    """Puts a leaf on its devices, reading for each only its own part of the files."""
    shape = tuple(config.sizes[a] for a in leaf.axes)
    if leaf.stacked:
        shape = (config.num_layers, *shape)
    read: dict[tuple, np.ndarray] = {}  # replicas ask for the same part

    def part(index: Any) -> np.ndarray:
        ranges = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        if ranges not in read:
            layers = ranges[0] if leaf.stacked else (0, 1)
            within = dict(zip(leaf.axes, ranges[leaf.stacked :], strict=True))
            out = np.empty((layers[1] - layers[0], *(b - a for a, b in within.values())), dtype)
            for i, layer in enumerate(range(*layers)):
                name = leaf.names[layer]
                out[i] = leaf.read(holder[name].get_slice(name), within)
            read[ranges] = out if leaf.stacked else out[0]
        return read[ranges]

    return jax.make_array_from_callback(shape, sharding, part)


@jax.jit
def _all_finite(value: jax.Array) -> jax.Array:
    return jnp.isfinite(value).all()


def _check_finite(folder: epath.Path, leaf: _Leaf, value: jax.Array) -> None:
    if bool(_all_finite(value)):
        return
    layers = value if leaf.stacked else [value]
    bad = next(n for n, x in zip(leaf.names, layers, strict=True) if not bool(_all_finite(x)))
    raise InputError(f"{folder}: {bad} holds values that are not finite")


def _check_names(folder: epath.Path, holder: dict[str, Any], config: ModelConfig) -> None:
    """Reports every tensor that is missing, extra or misshapen, all together."""
    expected = tensor_shapes(config)
    known = expected.keys() | {"lm_head.weight"}  # folders with tied embeddings may repeat it
    problems = [f"missing {name}" for name in expected if name not in holder]
    problems += [f"unexpected {n}" for n in holder if n not in known and "rotary_emb" not in n]
    for name, wanted in expected.items():
        if name in holder:
            shape = tuple(holder[name].get_slice(name).get_shape())
            if shape != wanted:
                problems.append(f"{name} is {list(shape)}, config.json says {list(wanted)}")
    if config.tie_embeddings and not _same_rows(holder, "lm_head.weight", _EMBEDDING):
        problems.append(
            f"lm_head.weight differs from {_EMBEDDING}, to which config.json ties it; set "
            "tie_word_embeddings to false, as transformers then reads it"
        )
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        shown = "; ".join(problems[:20]) + more
        raise InputError(f"{folder} does not hold the model of its config.json: {shown}")


def _same_rows(holder: dict[str, Any], name: str, other: str) -> bool:
    """Whether two matrices are equal, a block of rows in memory at a time; if both are there."""
    if name not in holder or other not in holder:
        return True
    a, b = holder[name].get_slice(name), holder[other].get_slice(other)
    if a.get_shape() != b.get_shape():
        return False
    count = a.get_shape()[0]
    blocks = (slice(i, min(i + _ROWS, count)) for i in range(0, count, _ROWS))
    return all(np.array_equal(a[rows], b[rows]) for rows in blocks)


def weight_files(folder: epath.Path) -> list[epath.Path]:
    """The safetensors files of a model: the only one, or those that its index names.

    Where there are both it is the only one, as for transformers.

    Raises:
      InputError: if there are none, or the index is damaged or names a file that is not there.
    """
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise InputError(f"no model.safetensors in {folder}, nor an index of several files")
    names = model_config.read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} has no weight_map")
    parts = sorted(set(map(str, names.values())))
    for name in parts:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):  # never out of the folder
            raise InputError(f"{index} names {name!r}, which is no safetensors file beside it")
        if not (folder / name).exists():
            raise InputError(f"{index} names {name}, which is not in the folder")
    return [folder / name for name in parts]


def tensor_handles(folder: epath.Path) -> dict[str, Any]:
    """Opens the weight files of a folder: the file that holds each tensor, by its name."""
    try:
        opened = [safetensors.safe_open(str(p), framework="numpy") for p in weight_files(folder)]
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"a weights file in {folder} is damaged: {error}") from error
    return {name: handle for handle in opened for name in handle.keys()}  # noqa: SIM118 (a handle has keys but cannot be iterated)


def export_folder(
    folder: epath.PathLike, model: Transformer, tokenizer: Tokenizer, chat_template: str
) -> None:
    """Writes a folder that `load_model` and transformers load; weights in float32.

    Raises:
      InputError: if the weights are int8, which would not come back as they were.
    """
    if model.is_quantized:
        raise InputError("a model loaded as int8 cannot be exported; load it unquantized")
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for leaf in _leaves(model.config):
        parent, attribute = _find(model, leaf.path)
        value = np.asarray(getattr(parent, attribute)[...], np.float32)
        for name, layer in zip(leaf.names, value if leaf.stacked else [value], strict=True):
            tensors[name] = np.ascontiguousarray(leaf.to_hf(layer))
    fields = model_config.to_hf_fields(model.config)
    written = {
        "model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"}),
        "config.json": (json.dumps(fields, indent=2) + "\n").encode(),
        "chat_template.jinja": chat_template.encode(),
        **tokenizer.files(),
    }
    for name, data in written.items():
        files.write_bytes(folder / name, data)
