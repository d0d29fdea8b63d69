"""The numbers of a model, read from a Hugging Face `config.json` and from nowhere else.

Both spellings are read: the older top-level `rope_theta` / `rope_scaling` / `torch_dtype` and
transformers 5's `rope_parameters` / `dtype`. An architecture or option that the port does not
compute exactly is refused by name.
"""

import dataclasses
import json
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low rope frequencies (arXiv 2407.21783; `rope_type` llama3)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model; letters as in WORKSPACE.md."""

    vocab_size: int  # V
    hidden_size: int  # D
    mlp_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    tie_embeddings: bool
    max_position_embeddings: int  # tokens the model was trained to read
    bos_token_id: int
    eos_token_ids: tuple[int, ...]

    @property
    def kv_floats_per_token(self) -> int:
        """Numbers that one token or slot occupies in the KV cache: 2 * L * K * H."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def num_params(self) -> int:
        """Counts the weights, tied embeddings once."""
        D, F, N, K, H = (
            self.hidden_size,
            self.mlp_size,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
        )
        block = 2 * D * N * H + 2 * D * K * H + 3 * D * F + 2 * D
        embeddings = self.vocab_size * D * (1 if self.tie_embeddings else 2)
        return self.num_layers * block + embeddings + D


def _required(fields: dict[str, Any], name: str, where: str) -> Any:
    if fields.get(name) is None:
        raise InputError(f"{where} has no field {name!r}, which a Llama config.json must have")
    return fields[name]


def _rope(fields: dict[str, Any], where: str) -> tuple[float, Llama3Scaling | None]:
    """Returns (theta, scaling) from either spelling."""
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    theta = rope.get("rope_theta", fields.get("rope_theta"))
    if theta is None:
        raise InputError(
            f"{where} gives no rope_theta, neither at top level nor in rope_parameters"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind == "llama3":
        names = [field.name for field in dataclasses.fields(Llama3Scaling)]
        return float(theta), Llama3Scaling(**{name: _required(rope, name, where) for name in names})
    raise InputError(f"{where}: rope type {kind!r} is not supported; default and llama3 are")


def parse_config(fields: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Builds a `ModelConfig` from the fields of a Hugging Face config.

    Raises:
      InputError: if a field is missing or the architecture, activation, a bias or the rope type
        is one that this port does not compute.
    """
    architectures = fields.get("architectures") or []
    if not any(name in SUPPORTED_ARCHITECTURES for name in architectures):
        raise InputError(
            f"{where}: architectures is {architectures}, supported: {SUPPORTED_ARCHITECTURES}"
        )
    if fields.get("hidden_act", "silu") != "silu":
        raise InputError(f"{where}: hidden_act {fields['hidden_act']!r} is not supported; silu is")
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise InputError(f"{where}: {name}=true is not supported")
    theta, scaling = _rope(fields, where)
    heads = _required(fields, "num_attention_heads", where)
    width = _required(fields, "hidden_size", where)
    kv_heads = fields.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise InputError(f"{where}: {kv_heads} kv heads do not divide {heads} heads")
    eos = _required(fields, "eos_token_id", where)
    return ModelConfig(
        vocab_size=_required(fields, "vocab_size", where),
        hidden_size=width,
        mlp_size=_required(fields, "intermediate_size", where),
        num_layers=_required(fields, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=fields.get("head_dim") or width // heads,
        norm_eps=_required(fields, "rms_norm_eps", where),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        max_position_embeddings=_required(fields, "max_position_embeddings", where),
        bos_token_id=_required(fields, "bos_token_id", where),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
    )


def read_config(folder: epath.PathLike) -> ModelConfig:
    """Reads `folder/config.json`.

    Raises:
      InputError: if the file is missing, is not JSON or describes an unsupported model.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"no config.json in {folder}; a Hugging Face model folder has one")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds {type(fields).__name__}, expected an object")
    try:
        config = parse_config(fields, str(path))
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} has a field of the wrong type: {error}") from error
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_size = field.type in (int, float) and field.name != "bos_token_id"
        if is_size and not (type(value) in (int, float) and value > 0):
            raise InputError(f"{path}: {field.name} must be a number above 0, got {value!r}")
    return config


def to_hf_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of a `config.json` that transformers reads as the same model."""
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }
