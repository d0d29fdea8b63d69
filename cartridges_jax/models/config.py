"""The numbers of a model, read from a Hugging Face `config.json` and from nowhere else.

Four architectures are one transformer with options: Llama (2, 3, 3.1, 3.2), Mistral without a
sliding window, Qwen2.5 (biases on q, k, v) and Qwen3 dense (norms on q and k). Both spellings are
read: the older top-level `rope_theta` / `rope_scaling` / `torch_dtype` and transformers 5's
`rope_parameters` / `dtype`. What the port does not compute exactly is refused by name.
"""

import dataclasses
import json
import logging
import math
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError
from cartridges_jax.models.rope import Rope, parse_rope, rope_fields

FAMILIES = {  # the class that transformers names, and its model_type
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# Fields that change what a model computes in a way that this port does not follow.
_REFUSED = ("quantization_config", "attn_logit_softcapping", "num_experts", "num_local_experts")
LLAMA_THETA = 10_000.0  # Llama 2's config.json names none and means this

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model; letters as in WORKSPACE.md."""

    family: str  # model_type: one of FAMILIES' values
    vocab_size: int  # V
    hidden_size: int  # D
    mlp_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    output_bias: bool  # of the attention's output projection
    mlp_bias: bool
    qk_norm: bool  # RMS norm over H of queries and keys, before rope
    tie_embeddings: bool
    max_position_embeddings: int  # tokens the model was trained to read
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # may be empty: the chat template closes turns by itself

    @property
    def window(self) -> int:
        """Tokens that the model can read: what YaRN stretches included."""
        return self.rope.window(self.max_position_embeddings)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the weights' axes by their letters."""
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "F": self.mlp_size,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "H": self.head_dim,
        }

    @property
    def kv_floats_per_token(self) -> int:
        """Numbers that one token or slot occupies in the KV cache: 2 * L * K * H."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def num_params(self) -> int:
        """Counts the weights, tied embeddings once."""
        D, F, H = self.hidden_size, self.mlp_size, self.head_dim
        heads = self.num_heads + 2 * self.num_kv_heads
        block = D * H * (heads + self.num_heads) + 3 * D * F + 2 * D
        block += heads * H * self.qkv_bias + D * self.output_bias
        block += (2 * F + D) * self.mlp_bias + 2 * H * self.qk_norm
        embeddings = self.vocab_size * D * (1 if self.tie_embeddings else 2)
        return self.num_layers * block + embeddings + D


def parse_config(fields: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Builds a `ModelConfig` from the fields of a Hugging Face config.

    Raises:
      InputError: if a field is missing or asks for something that this port does not compute.
    """

    def required(name: str) -> Any:
        if fields.get(name) is None:
            raise InputError(f"{where} has no field {name!r}, which a {family} config must have")
        return fields[name]

    def size(name: str) -> int:
        value = required(name)
        if type(value) is not int or value < 1:
            raise InputError(f"{where}: {name} must be a whole number above 0, got {value!r}")
        return value

    architectures = fields.get("architectures") or []
    family = next((FAMILIES[name] for name in architectures if name in FAMILIES), None)
    if family is None:
        raise InputError(
            f"{where}: architectures is {architectures}, supported: {', '.join(FAMILIES)}"
        )
    _refuse_options(fields, family, where)
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        if not isinstance(fields.get(name), bool | None):
            raise InputError(f"{where}: {name} must be true or false, got {fields[name]!r}")
    heads, width, window = (
        size(name) for name in ("num_attention_heads", "hidden_size", "max_position_embeddings")
    )
    # Where transformers has a default of its own, a missing field is an error, but for the two
    # that Llama 2's published folders leave out.
    if family == "llama":
        fields = {"num_key_value_heads": heads} | _given(fields)
        if "rope_theta" not in {**rope_fields(fields, where), **fields}:
            _log.warning("%s names no rope_theta: %g, as transformers takes it", where, LLAMA_THETA)
            fields = {"rope_theta": LLAMA_THETA} | fields
    kv_heads = size("num_key_value_heads")
    if heads % kv_heads:
        raise InputError(f"{where}: {kv_heads} kv heads do not divide {heads} heads")
    if family != "qwen3":
        fields = {"head_dim": width // heads} | _given(fields)
    head_dim = size("head_dim")
    if head_dim % 2:
        raise InputError(f"{where}: head_dim {head_dim} is odd; rope turns pairs")
    eps = required("rms_norm_eps")
    if type(eps) not in (int, float) or not 0 < eps < math.inf:
        raise InputError(f"{where}: rms_norm_eps must be a number above 0, got {eps!r}")
    biased = bool(fields.get("attention_bias")) and family in ("llama", "qwen3")
    vocabulary = size("vocab_size")
    bos = fields.get("bos_token_id")
    return ModelConfig(
        family=family,
        vocab_size=vocabulary,
        hidden_size=width,
        mlp_size=size("intermediate_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=float(eps),
        rope=parse_rope(fields, window, where),
        qkv_bias=biased or family == "qwen2",
        output_bias=biased,
        mlp_bias=bool(fields.get("mlp_bias")) and family == "llama",
        qk_norm=family == "qwen3",
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        max_position_embeddings=window,
        bos_token_id=next(iter(_token_ids(_listed(bos), vocabulary, where)), None),
        eos_token_ids=_token_ids(_listed(fields.get("eos_token_id")), vocabulary, where),
    )


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in fields.items() if value is not None}


def _listed(value: Any) -> list[Any]:
    """A list of what may be one, none or several."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _token_ids(ids: list[Any], vocabulary: int, where: str) -> tuple[int, ...]:
    """Token ids, all of them in the vocabulary."""
    for token in ids:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise InputError(f"{where}: {token!r} is no token of the {vocabulary} there are")
    return tuple(ids)


def _refuse_options(fields: dict[str, Any], family: str, where: str) -> None:
    if fields.get("hidden_act", "silu") != "silu":
        raise InputError(f"{where}: hidden_act {fields['hidden_act']!r} is not supported; silu is")
    for name in _REFUSED:
        if fields.get(name):
            raise InputError(f"{where}: {name} is not supported; remove it if it has no effect")
    # Mistral slides its window wherever one is named, Qwen only if told to; transformers takes
    # 4096 where none is.
    is_told = family == "mistral" or (
        family.startswith("qwen") and fields.get("use_sliding_window")
    )
    slides = fields.get("sliding_window", 4096) if is_told else None
    others = set(fields.get("layer_types") or ()) - {"full_attention"}
    if slides or others:
        what = f"layer_types with {sorted(others)}" if others else f"sliding_window {slides}"
        raise InputError(f"{where}: {what} is not supported; full attention is")


def read_config(folder: epath.PathLike) -> ModelConfig:
    """Reads `folder/config.json`, and further stop tokens from `generation_config.json`.

    Raises:
      InputError: if the file is missing, is not JSON or describes an unsupported model.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"no config.json in {folder}; a Hugging Face model folder has one")
    fields = read_json_object(path)
    try:
        config = parse_config(fields, str(path))
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path} has a field of the wrong type: {error}") from error
    generation = epath.Path(folder) / "generation_config.json"
    if generation.exists():
        more = read_json_object(generation).get("eos_token_id")
        more = _token_ids(_listed(more), config.vocab_size, str(generation))
        ids = dict.fromkeys((*config.eos_token_ids, *more))
        config = dataclasses.replace(config, eos_token_ids=tuple(ids))
    return config


def read_json_object(path: epath.Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      InputError: if it does not.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds {type(fields).__name__}, expected an object")
    return fields
