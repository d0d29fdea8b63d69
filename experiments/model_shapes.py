"""Shapes of published models, as their config.json tells them: for compiling without weights."""

from typing import Any

from cartridges_jax.models.config import ModelConfig, parse_config

_LLAMA3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "max_position_embeddings": 131_072,
    "bos_token_id": 128_000,
    "eos_token_id": [128_001, 128_008, 128_009],
}
_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama3(width: int, mlp: int, layers: int, heads: int, **more: Any) -> ModelConfig:
    sizes = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
    }
    return parse_config(_LLAMA3 | sizes | more)


LLAMA_3_2_1B = _llama3(
    2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True,
    rope_scaling=_LLAMA3_ROPE | {"factor": 32.0},
)  # fmt: skip
LLAMA_3_2_3B = _llama3(
    3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True,
    rope_scaling=_LLAMA3_ROPE | {"factor": 32.0},
)  # fmt: skip
LLAMA_3_1_8B = _llama3(4096, 14_336, 32, 32, rope_scaling=_LLAMA3_ROPE | {"factor": 8.0})
LLAMA_3_1_70B = _llama3(8192, 28_672, 80, 64, rope_scaling=_LLAMA3_ROPE | {"factor": 8.0})


def _qwen3(width: int, mlp: int, layers: int, heads: int, **more: Any) -> ModelConfig:
    shape = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40_960,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
    }
    return parse_config(shape | more)


QWEN3_4B = _qwen3(2560, 9728, 36, 32, tie_word_embeddings=True)
QWEN3_32B = _qwen3(5120, 25_600, 64, 64)
