"""A GGUF file, the form that laptops run models in: quantised weights, tokenizer and template.

Its metadata is translated to the fields of a Hugging Face config and parsed as such, so that what
the port does not compute is refused in one place. Weights keep their quantised blocks in the file
until a part is read; then a few rows at a time become numbers, by the `gguf` package.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import numpy as np
from etils import epath

from cartridges_jax.errors import InputError
from cartridges_jax.models.config import ModelConfig, parse_config
from cartridges_jax.models.rope import FrequencyDivisors
from cartridges_jax.models.sources.base import ModelSource, Tensor
from cartridges_jax.models.sources.gguf_header import StoredTensor, read_header
from cartridges_jax.models.sources.gguf_tokenizer import make_tokenizer
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.weights import tensor_shapes

ARCHITECTURES = {  # of GGUF, and the class that transformers computes it with; Mistral says llama
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ROPE_DIVISORS = "rope_freqs.weight"  # Llama 3.1's stretching of rope
_ROWS = 1024  # of a matrix that become float32 at a time


class GgufTensor:
    """A tensor in quantised blocks; rows of a matrix may come in another order than theirs."""

    def __init__(self, data: np.ndarray, stored: StoredTensor, order: np.ndarray | None = None):
        """Points at a tensor.

        Args:
          data: the file's bytes.
          stored: where they are.
          order: our row i is the file's row `order[i]`; None where they are the same.
        """
        self.shape = stored.shape
        self._type = stored.type
        blocks = data[stored.offset : stored.offset + stored.num_bytes]
        is_matrix = len(stored.shape) > 1
        self._rows = blocks.reshape(stored.shape[0] if is_matrix else 1, -1)
        self._order = order

    def read(self, cut: tuple[slice, ...], dtype: Any) -> np.ndarray:
        if len(self.shape) == 1:
            vector = gguf.dequantize(np.asarray(self._rows), self._type)[0]
            return (vector if self._order is None else vector[self._order])[cut].astype(dtype)
        count = self.shape[0]
        wanted = (np.arange(count) if self._order is None else self._order)[cut[0]]
        out = np.empty((len(wanted), *np.empty(self.shape[1:], "V0")[cut[1:]].shape), dtype)
        for start in range(0, len(wanted), _ROWS):
            rows = self._rows[wanted[start : start + _ROWS]]
            values = gguf.dequantize(rows, self._type).reshape(len(rows), *self.shape[1:])
            out[start : start + _ROWS] = values[(slice(None), *cut[1:])]
        return out


class GgufSource(ModelSource):
    """One GGUF file that holds a whole model."""

    def __init__(self, path: epath.PathLike):
        """Reads the header.

        Raises:
          InputError: if it is damaged or of an architecture that the port does not compute.
        """
        self.where, self.file = str(path), epath.Path(path).name
        self._header = read_header(path)
        self._data = np.memmap(path, mode="r")
        self._architecture = self._text("general.architecture")
        if self._architecture not in ARCHITECTURES:
            raise InputError(
                f"{self.where}: the architecture {self._architecture!r} is not supported; "
                f"{', '.join(ARCHITECTURES)} are"
            )
        if self._header.fields.get("split.count", 0) not in (0, 1):
            raise InputError(
                f"{self.where} is one of several parts; join them with llama-gguf-split"
            )

    def config(self) -> ModelConfig:
        try:
            config = parse_config(self._hf_fields(), self.where)
            self._refuse_options(config)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(f"{self.where} has a field of the wrong type: {error}") from error
        stored = self._header.tensors.get(_ROPE_DIVISORS)
        if stored is None:
            return config
        is_vector = stored.shape == (config.head_dim // 2,)
        if not is_vector or stored.type != gguf.GGMLQuantizationType.F32:
            raise InputError(
                f"{self.where}: {_ROPE_DIVISORS} is {list(stored.shape)} of {stored.type.name}, "
                f"must be [{config.head_dim // 2}] of F32"
            )
        divisors = GgufTensor(self._data, stored).read((slice(None),), np.float32)
        if not (divisors > 0).all():
            raise InputError(f"{self.where}: {_ROPE_DIVISORS} must be numbers above 0")
        scaling = FrequencyDivisors(tuple(map(float, divisors)))
        return dataclasses.replace(config, rope=dataclasses.replace(config.rope, scaling=scaling))

    def tokenizer(self) -> Tokenizer:
        return make_tokenizer(self._header.fields, self.where)

    def chat_template(self) -> str:
        return self._text("tokenizer.chat_template", "; a chat model's file has one")

    def tensors(self) -> Mapping[str, Tensor]:
        config = self.config()
        held = dict(self._header.tensors)
        for kind in {stored.type for stored in held.values()}:
            self._check_quantization(kind)
        if config.num_layers > len(held):  # before names of so many layers are made
            return {}
        names = gguf.get_tensor_name_map(_arch(self._architecture), config.num_layers)
        held.pop(_ROPE_DIVISORS, None)
        found: dict[str, Tensor] = {}
        for name in tensor_shapes(config):
            stored = held.pop(names.get_name(name, try_suffixes=(".weight", ".bias")) or "", None)
            if stored is not None:
                found[name] = GgufTensor(self._data, stored, self._order(name, stored, config))
        # What is left belongs to another model; the weights' reader reports it.
        left = {f"{name} of the file": GgufTensor(self._data, held[name]) for name in held}
        return found | left

    def weight_files(self) -> list[str]:
        return [self.where]

    def stored(self) -> Iterator[tuple[str, bytes | memoryview]]:
        for name, s in sorted(self._header.tensors.items()):
            data = self._data[s.offset : s.offset + s.num_bytes].data
            yield f"{name} {s.type.name} {s.shape}", data

    def _hf_fields(self) -> dict[str, Any]:
        """The metadata as a Hugging Face config tells it."""
        fields, tensors = self._header.fields, self._header.tensors
        tokens = fields.get("tokenizer.ggml.tokens")
        ends = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        factor = self._number("rope.scaling.factor", self._number("rope.scale_linear"))
        kind = self._number("rope.scaling.type", "none" if factor is None else "linear")
        rope: dict[str, Any] = {
            "rope_theta": self._number("rope.freq_base", 10_000.0),
            "rope_type": "default" if kind == "none" else kind,
            "factor": factor,
            "original_max_position_embeddings": self._number(
                "rope.scaling.original_context_length"
            ),
            "beta_fast": self._number("rope.scaling.yarn_beta_fast"),
            "beta_slow": self._number("rope.scaling.yarn_beta_slow"),
        }
        more = self._number("rope.scaling.attn_factor")
        if more is not None and kind == "yarn" and factor is not None:
            # A factor beside YaRN's own magnitude, in place of which a config.json has one.
            rope["attention_factor"] = more * (0.1 * math.log(factor) + 1.0)
        heads = self._number("attention.head_count")
        return {
            "architectures": [ARCHITECTURES[self._architecture]],
            "vocab_size": len(tokens) if isinstance(tokens, list) else None,
            "hidden_size": self._number("embedding_length"),
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._number("attention.head_count_kv", heads),
            "head_dim": self._number("attention.key_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": self._number("context_length"),
            "rope_parameters": rope,
            "tie_word_embeddings": "output.weight" not in tensors,
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
            "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": list(dict.fromkeys(e for e in ends if e is not None)),
        }

    def _refuse_options(self, config: ModelConfig) -> None:
        """Raises InputError where the file asks for what the port does not compute."""
        for name, computed in (
            ("attention.sliding_window", 0),
            ("attention.value_length", config.head_dim),
            ("attention.scale", config.head_dim**-0.5),
            ("attention.clamp_kqv", 0),
            ("attention.causal", True),
            ("attn_logit_softcapping", 0),
            ("final_logit_softcapping", 0),
            ("embedding_scale", 1),
            ("residual_scale", 1),
            ("logit_scale", 1),
            ("expert_count", 0),
            ("rope.dimension_count", config.head_dim),
            ("rope.scaling.yarn_ext_factor", 1),
            ("rope.scaling.yarn_log_multiplier", 0),
        ):
            value = self._number(name)
            if value is not None and value != computed:
                raise InputError(
                    f"{self.where}: {self._architecture}.{name} is {value}, which is not supported"
                )

    def _order(self, name: str, stored: StoredTensor, config: ModelConfig) -> np.ndarray | None:
        """Rows of q and k of "llama" files lie for a rope that turns neighbours, not halves."""
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
        if self._architecture != "llama" or heads is None:
            return None
        if heads * config.head_dim != stored.shape[0]:
            return None  # a shape that is reported
        rows = np.arange(stored.shape[0])
        return rows.reshape(heads, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)

    def _number(self, name: str, default: Any = None) -> Any:
        """A field of the architecture; where it is a list, one for each layer, they must agree."""
        value = self._header.fields.get(f"{self._architecture}.{name}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise InputError(
                    f"{self.where}: {self._architecture}.{name} differs from layer to layer, which "
                    "is not supported"
                )
            return value[0]
        return value

    def _text(self, key: str, why: str = "") -> str:
        value = self._header.fields.get(key)
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.where} has no field {key}{why}")
        return value

    def _check_quantization(self, kind: gguf.GGMLQuantizationType) -> None:
        one_block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        try:
            gguf.dequantize(one_block, kind)
        except NotImplementedError:
            raise InputError(
                f"{self.where}: the quantization {kind.name} is not supported by the gguf package"
            ) from None


def _arch(name: str) -> gguf.MODEL_ARCH:
    return next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
