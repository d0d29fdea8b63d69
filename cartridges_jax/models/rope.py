"""Rotary position embedding: which angle each position turns each pair of dimensions by.

Frequencies are computed once in numpy from the numbers of a config.json, as `transformers` does;
`apply_rope` turns queries and keys. Kinds: default, linear, llama3, yarn, and what GGUF files have.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cartridges_jax.errors import InputError

Turn = tuple[jax.Array, jax.Array]  # cosines and sines [B, T, H / 2], float32


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All wavelengths longer by `factor`: position interpolation (arXiv 2306.15595)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low frequencies (arXiv 2407.21783)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): interpolates low frequencies and sharpens attention.

    `attention_factor` multiplies cosines and sines, so scores grow by its square.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclasses.dataclass(frozen=True)
class FrequencyDivisors:
    """Each frequency divided by its own number: how GGUF files tell Llama 3.1's stretching."""

    divisors: tuple[float, ...]  # H / 2


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rotary embedding of one model."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | YarnScaling | FrequencyDivisors | None

    def window(self, max_position_embeddings: int) -> int:
        """Tokens that a model can read. YaRN is switched on in a config that keeps its window."""
        if not isinstance(self.scaling, YarnScaling):
            return max_position_embeddings
        stretched = self.scaling.factor * self.scaling.original_max_position_embeddings
        return max(max_position_embeddings, int(stretched))


def rope_fields(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The rope of a config.json; where both spellings are there, the older one counts.

    So it does in transformers, which then forgets what only the newer one says: such a file is
    refused.

    Raises:
      InputError: if the two do not say the same.
    """
    older, newer = fields.get("rope_scaling") or {}, fields.get("rope_parameters") or {}
    if not older or not newer:
        return older or newer
    counts = {"rope_theta": fields.get("rope_theta")} | older
    for name, value in newer.items():
        known = counts.get(name, counts.get("type") if name == "rope_type" else None)
        if known != value and (name, value) != ("rope_type", "default"):
            raise InputError(
                f"{where} has rope_scaling beside rope_parameters, and they differ in {name} "
                f"({known!r} and {value!r}); put all of it into rope_parameters and remove "
                "rope_scaling"
            )
    return older


def parse_rope(fields: dict[str, Any], window: int, where: str) -> Rope:
    """Reads the rotary embedding from the fields of a config.json, in either spelling.

    Args:
      fields: of the config; older ones have `rope_theta` and `rope_scaling` at top level, those of
        transformers 5 have `rope_parameters`.
      window: `max_position_embeddings`, the original window of a scaling that names none.
      where: the file's name, for errors.

    Raises:
      InputError: if a number is missing or the kind is not supported.
    """
    rope = dict(rope_fields(fields, where))
    theta = rope.get("rope_theta", fields.get("rope_theta"))
    if theta is None:
        raise InputError(
            f"{where} gives no rope_theta, neither at top level nor in rope_parameters"
        )
    share = rope.get("partial_rotary_factor", fields.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise InputError(f"{where}: partial_rotary_factor {share} is not supported; 1 is")
    named = "original_max_position_embeddings"
    original = rope.get(named) or fields.get(named) or window
    if not original > 0:
        raise InputError(f"{where}: {named} must be above 0, got {original}")

    def number(name: str) -> float:
        if rope.get(name) is None:
            raise InputError(f"{where}: rope type {kind!r} needs the field {name!r}")
        if not 0 < float(rope[name]) < math.inf:
            raise InputError(f"{where}: {name} of rope must be above 0, got {rope[name]}")
        return float(rope[name])

    if not 1 < float(theta) < math.inf:
        raise InputError(f"{where}: rope_theta must be a number above 1, got {theta}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = LinearScaling(number("factor"))
        case "llama3":
            low, high = number("low_freq_factor"), number("high_freq_factor")
            if not low < high:
                raise InputError(f"{where}: {low=} of low_freq_factor must be below {high=}")
            scaling = Llama3Scaling(number("factor"), low, high, int(original))
        case "yarn":
            factor = number("factor") if rope.get("factor") else window / original
            scaling = YarnScaling(
                factor,
                int(original),
                number("attention_factor")
                if rope.get("attention_factor") is not None
                else _yarn_attention_factor(rope, factor),
                number("beta_fast") if rope.get("beta_fast") else 32.0,
                number("beta_slow") if rope.get("beta_slow") else 1.0,
                bool(rope.get("truncate", True)),
            )
        case _:
            raise InputError(
                f"{where}: rope type {kind!r} is not supported; default, linear, llama3, yarn are"
            )
    return Rope(float(theta), scaling)


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float:
    """The paper's 0.1 ln(factor) + 1, with DeepSeek's two multipliers."""

    def magnitude(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    return magnitude(above) / magnitude(below) if above and below else magnitude(1.0)


def rope_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Returns the H / 2 rotation frequencies in radians per position, float32."""
    H = head_dim
    freq = np.float32(1) / np.float32(rope.theta) ** (np.arange(0, H, 2, dtype=np.float32) / H)
    match rope.scaling:
        case LinearScaling(factor):
            freq = freq / factor
        case Llama3Scaling(factor, low, high, window):
            # Wavelengths beyond window / low are stretched by `factor`, those below
            # window / high are kept, and between the two it interpolates.
            turns = window * freq / (2 * np.pi)
            keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
            freq = freq * (keep + (1 - keep) / factor)
        case FrequencyDivisors(divisors):
            freq = freq / np.asarray(divisors, np.float32)
        case YarnScaling(factor, window):
            first, last = _yarn_range(rope, H)
            ramp = np.clip((np.arange(H // 2) - first) / (last - first), 0.0, 1.0)
            freq = freq * (1 - ramp) + freq / factor * ramp
    return freq.astype(np.float32)


def _yarn_range(rope: Rope, head_dim: int) -> tuple[float, float]:
    """The pairs between which YaRN passes from keeping a frequency to interpolating it."""
    scaling = rope.scaling
    assert isinstance(scaling, YarnScaling)

    def pair(turns: float) -> float:
        window = scaling.original_max_position_embeddings
        return head_dim * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = float(max(first, 0)), float(min(last, head_dim - 1))
    return first, last + 0.001 if first == last else last


def rope_angles(positions: Float[Array, "B T"], rope: Rope, head_dim: int) -> Turn:
    """Returns the cosines and sines [B, T, H / 2] of every position, float32."""
    angles = positions[..., None] * rope_frequencies(rope, head_dim)
    factor = rope.scaling.attention_factor if isinstance(rope.scaling, YarnScaling) else 1.0
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(x: Float[Array, "B T M H"], turn: Turn) -> Float[Array, "B T M H"]:
    """Rotates the halves of each head by the cosines and sines of `rope_angles`, in float32."""
    cos, sin = (part[..., None, :] for part in turn)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
