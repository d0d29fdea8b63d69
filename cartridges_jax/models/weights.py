"""Weights: how our leaves and the tensors of a Hugging Face checkpoint correspond.

Weights are read lazily, slice by slice: each device's part of each leaf goes straight to it with
the planned sharding and dtype, so the host holds one leaf beside what is placed. All missing, extra
and misshapen tensors are reported together. The correspondence is told by `_TENSORS` alone; files
of other formats give their tensors under these names and in this layout (`sources/`).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from cartridges_jax.errors import InputError
from cartridges_jax.metrics import progress
from cartridges_jax.models import int8
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.linear import Embedding, Linear
from cartridges_jax.models.sources.base import Tensor, blocks_of
from cartridges_jax.models.transformer import Transformer, abstract_transformer

Quantization = Literal["none", "int8"]

_EMBEDDING = "model.embed_tokens.weight"

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
class Leaf:
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
        return tuple(math.prod(self.sizes[a] for a in group) for group in self.hf_axes)

    @property
    def size(self) -> int:
        return len(self.names) * math.prod(self.hf_shape)

    def read(self, tensor: Tensor, parts: dict[str, tuple[int, int]], dtype: Any) -> np.ndarray:
        """Reads the part of a tensor that lies within `parts`, a range for each axis, as ours."""
        cuts, sizes = [], []
        for group in self.hf_axes:
            # Only the first axis of a merged group is ever split over devices.
            inner = math.prod(self.sizes[a] for a in group[1:])
            start, stop = parts[group[0]]
            cuts.append(slice(start * inner, stop * inner))
            sizes += [parts[a][1] - parts[a][0] for a in group]
        order = "".join(self.hf_axes)
        part = tensor.read(tuple(cuts), dtype).reshape(sizes)
        return part.transpose([order.index(a) for a in self.axes])


def leaves(config: ModelConfig) -> Iterator[Leaf]:
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
            yield Leaf(names, path, tuple(hf_axes.split()), axes, config.sizes)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a Hugging Face checkpoint, by its name."""
    return {name: leaf.hf_shape for leaf in leaves(config) for name in leaf.names}


def read_weights(
    tensors: Mapping[str, Tensor],
    where: str,
    config: ModelConfig,
    mesh: Mesh,
    dtype: Any,
    quantization: Quantization = "none",
    norm_dtype: Any = None,
    fsdp: bool = False,
) -> Transformer:
    """Reads weights onto `mesh`.

    The largest leaves come first, so that the host's peak is the model and a fraction, not the
    model and its largest leaf. With `quantization="int8"` each leaf is rounded on its devices
    before the next one is read.

    Args:
      tensors: by Hugging Face name.
      where: the file or folder, for errors.
      config: the model's sizes.
      mesh: where the weights go.
      dtype: of the matrices.
      norm_dtype: of norms and biases; None for `dtype`.
      quantization: "int8" rounds the matrices to one byte a weight.
      fsdp: matrices are split over "data" too (`sharding.weight_axes`).

    Raises:
      InputError: if any tensor is missing, extra, of another shape, or not finite; all such
        tensors are named together.
    """
    check_names(where, tensors, config)
    ordered = sorted(leaves(config), key=lambda leaf: -leaf.size)
    with jax.set_mesh(mesh):
        model = abstract_transformer(config, dtype, norm_dtype, fsdp)
        bar = progress(sum(leaf.size for leaf in ordered), "load", " weights", scaled=True)
        for leaf in ordered:
            parent, attribute = find_leaf(model, leaf.path)
            param = getattr(parent, attribute)
            spec = param.get_metadata()["spec"]
            value = _place(
                leaf, tensors, config, NamedSharding(mesh, spec), param.get_value().dtype
            )
            _check_finite(where, leaf, value)
            setattr(parent, attribute, nnx.Param(value, spec=spec))
            is_matrix = isinstance(parent, Linear | Embedding) and attribute == "weight"
            if quantization == "int8" and is_matrix:
                int8.quantize(parent)
            bar.update(leaf.size)
        bar.close()
    return model


def find_leaf(model: Transformer, path: str) -> tuple[Any, str]:
    """The module that holds a leaf, and the leaf's name in it."""
    *parents, attribute = path.split(".")
    module: Any = model
    for name in parents:
        module = getattr(module, name)
    return module, attribute


def _place(
    leaf: Leaf,
    tensors: Mapping[str, Tensor],
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
                out[i] = leaf.read(tensors[leaf.names[layer]], within, dtype)
            read[ranges] = out if leaf.stacked else out[0]
        return read[ranges]

    return jax.make_array_from_callback(shape, sharding, part)


@jax.jit
def _all_finite(value: jax.Array) -> jax.Array:
    return jnp.isfinite(value).all()


def _check_finite(where: str, leaf: Leaf, value: jax.Array) -> None:
    if bool(_all_finite(value)):
        return
    layers = value if leaf.stacked else [value]
    bad = next(n for n, x in zip(leaf.names, layers, strict=True) if not bool(_all_finite(x)))
    raise InputError(f"{where}: {bad} holds values that are not finite")


def check_names(where: str, tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Reports every tensor that is missing, extra or misshapen, all together."""
    if config.num_layers > len(tensors):  # before names of so many layers are made
        raise InputError(
            f"{where} does not hold the model of its config: it has {len(tensors)} tensors, too "
            f"few for {config.num_layers} layers"
        )
    expected = tensor_shapes(config)
    known = expected.keys() | {"lm_head.weight"}  # folders with tied embeddings may repeat it
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {n}" for n in tensors if n not in known and "rotary_emb" not in n]
    for name, wanted in expected.items():
        if name in tensors and tensors[name].shape != wanted:
            shape = list(tensors[name].shape)
            problems.append(f"{name} is {shape}, the config says {list(wanted)}")
    if config.tie_embeddings and not _same_rows(tensors, "lm_head.weight", _EMBEDDING):
        problems.append(
            f"lm_head.weight differs from {_EMBEDDING}, to which config.json ties it; set "
            "tie_word_embeddings to false, as transformers then reads it"
        )
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        shown = "; ".join(problems[:20]) + more
        raise InputError(f"{where} does not hold the model of its config: {shown}")


def _same_rows(tensors: Mapping[str, Tensor], name: str, other: str) -> bool:
    """Whether two matrices are equal; if both are there."""
    if name not in tensors or other not in tensors:
        return True
    a, b = tensors[name], tensors[other]
    pairs = zip(blocks_of(a), blocks_of(b), strict=False)
    return a.shape == b.shape and all(np.array_equal(x, y) for x, y in pairs)
