"""The Llama-family transformer: one module whose blocks are stacked on a leading L axis.

It takes token ids with their positions and, optionally, a KV prefix per layer that all rows share
(a cartridge, or the real KV of a chunk) and a decode cache; it hands on hidden states. Blocks run
in one `jax.lax.scan`, so compile time does not grow with L. Modules are pytrees: pass them to
`jax.jit` and `jax.grad` as arguments.

Time of a forward grows with B * T * (weights + L * N * H * (P + T / 2)); activations kept for a
backward are B * T * D per layer, the rest is recomputed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention import attention
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.sharding import ACT_BTD, DATA, MODEL, head_axis

INIT_SCALE = 0.02  # standard deviation of fresh weights, as in Llama


class KV(NamedTuple):
    """Rotated keys and values: of a prefix [L, P, K, H], or of rows [L, B, S, K, H]."""

    k: jax.Array
    v: jax.Array


class Prefix(NamedTuple):
    """A context as the model's functions take it: shared by all rows, without a batch axis.

    `kv` is [L, P, K, H], of which the first `length` slots are live; tokens that follow it start
    at rope position `next_position`.
    """

    kv: KV
    length: jax.Array  # int32 scalar
    next_position: jax.Array  # int32 scalar


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Returns the H / 2 rotation frequencies in radians per position, float32.

    The llama3 scaling follows arXiv 2407.21783: wavelengths longer than the original window over
    `low_freq_factor` are stretched by `factor`, those shorter than the window over
    `high_freq_factor` are kept, and between the two it interpolates.
    """
    H = config.head_dim
    freq = config.rope_theta ** -(np.arange(0, H, 2, dtype=np.float32) / np.float32(H))
    scaling = config.rope_scaling
    if scaling is None:
        return freq.astype(np.float32)
    turns = scaling.original_max_position_embeddings * freq / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (freq * (keep + (1 - keep) / scaling.factor)).astype(np.float32)


def apply_rope(
    x: Float[Array, "*A T M H"], angles: Float[Array, "*A T Hh"]
) -> Float[Array, "*A T M H"]:
    """Rotates the halves of each head by `angles` (position x frequency), in float32."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rms_norm(x: Float[Array, "B T D"], weight: Float[Array, "D"], eps: float) -> jax.Array:
    """Root-mean-square norm, computed in float32."""
    f = x.astype(jnp.float32)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + eps)
    return (f * weight.astype(jnp.float32)).astype(x.dtype)


def _weight(rngs: nnx.Rngs, shape: tuple[int, ...], spec: P, dtype) -> nnx.Param:
    """A normal matrix; `spec` says where it lives and travels with it."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * INIT_SCALE, spec=spec)


def _norm(shape: tuple[int, ...], dtype) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, dtype), spec=P())


class Block(nnx.Module):
    """All blocks of the model: every weight has a leading L axis, which `jax.lax.scan` removes."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        L, D, F = config.num_layers, config.hidden_size, config.mlp_size
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
        heads = head_axis(K)
        self.attn_norm = _norm((L, D), dtype)
        self.wq = _weight(rngs, (L, D, N, H), P(None, None, heads, None), dtype)
        self.wk = _weight(rngs, (L, D, K, H), P(None, None, heads, None), dtype)
        self.wv = _weight(rngs, (L, D, K, H), P(None, None, heads, None), dtype)
        self.wo = _weight(rngs, (L, N, H, D), P(None, heads, None, None), dtype)
        self.mlp_norm = _norm((L, D), dtype)
        self.w_gate = _weight(rngs, (L, D, F), P(None, None, MODEL), dtype)
        self.w_up = _weight(rngs, (L, D, F), P(None, None, MODEL), dtype)
        self.w_down = _weight(rngs, (L, F, D), P(None, MODEL, None), dtype)
        self.norm_eps = config.norm_eps

    def qkv(self, x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns rotated queries [B, T, N, H], rotated keys and values [B, T, K, H]."""
        x = rms_norm(x, self.attn_norm[...], self.norm_eps)
        q = apply_rope(jnp.einsum("BTD,DNH->BTNH", x, self.wq[...]), angles)
        k = apply_rope(jnp.einsum("BTD,DKH->BTKH", x, self.wk[...]), angles)
        return q, k, jnp.einsum("BTD,DKH->BTKH", x, self.wv[...])

    def attention_output(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        out = jnp.einsum("BTNH,NHD->BTD", attended, self.wo[...], out_sharding=ACT_BTD)
        return x + out

    def mlp(self, x: jax.Array) -> jax.Array:
        h = rms_norm(x, self.mlp_norm[...], self.norm_eps)
        gate = jax.nn.silu(jnp.einsum("BTD,DF->BTF", h, self.w_gate[...]))
        up = jnp.einsum("BTD,DF->BTF", h, self.w_up[...])
        return x + jnp.einsum("BTF,FD->BTD", gate * up, self.w_down[...], out_sharding=ACT_BTD)


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm and LM head."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        V, D = config.vocab_size, config.hidden_size
        self.config = config
        self.embedding = _weight(rngs, (V, D), P(MODEL, None), dtype)
        self.blocks = Block(config, rngs=rngs, dtype=dtype)
        self.final_norm = _norm((D,), dtype)
        self.lm_head = (
            None if config.tie_embeddings else _weight(rngs, (V, D), P(MODEL, None), dtype)
        )

    def embed(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.embedding[...].at[token_ids].get(out_sharding=ACT_BTD)

    def angles(self, positions: Int[Array, "B T"]) -> Float[Array, "B T Hh"]:
        return positions[..., None].astype(jnp.float32) * rope_frequencies(self.config)

    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_start: Int[Array, "B T"],
        *,
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Runs whole rows.

        Args:
          token_ids: the rows.
          positions: rope position of each token; with a prefix they start at its next position.
          segment_start: index in the row of the first token of each token's own segment.
          prefix: seen by every token of every row; None for none.

        Returns:
          The hidden states before the LM head, normed, and the rows' own KV [L, B, T, K, H]
          (dead code, and removed by the compiler, where the caller drops it).
        """
        angles = self.angles(positions)
        scale = self.config.head_dim**-0.5
        kv, length = (None, None) if prefix is None else (prefix.kv, prefix.length)

        def body(x, layer):
            block, slots = layer
            q, k, v = block.qkv(x, angles)
            attended = attention(
                q,
                k,
                v,
                segment_start=segment_start,
                scale=scale,
                prefix=slots,
                prefix_length=length,
            )
            return block.mlp(block.attention_output(x, attended)), KV(k, v)

        body = jax.checkpoint(body, prevent_cse=False)
        x, own = jax.lax.scan(body, self.embed(token_ids), (self.blocks, kv))
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), own

    def decode(
        self,
        token_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_start: Int[Array, "B T"],
        cache: KV,
        offset: Int[Array, ""],
        *,
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Runs a few new tokens against `cache` [L, B, S, K, H], writing them at `offset`.

        Arguments as in `__call__`; `segment_start` counts in cache indices. The cache is carried
        through the layers and updated in place: a step moves one token of it, not all.
        """
        angles = self.angles(positions)
        scale = self.config.head_dim**-0.5
        kv, length = (None, None) if prefix is None else (prefix.kv, prefix.length)

        def body(carry, layer):
            x, cache = carry
            block, slots, index = layer
            q, k, v = block.qkv(x, angles)
            at = (index, 0, offset, 0, 0)
            cache = KV(
                jax.lax.dynamic_update_slice(cache.k, k[None].astype(cache.k.dtype), at),
                jax.lax.dynamic_update_slice(cache.v, v[None].astype(cache.v.dtype), at),
            )
            attended = attention(
                q,
                jax.lax.dynamic_index_in_dim(cache.k, index, keepdims=False),
                jax.lax.dynamic_index_in_dim(cache.v, index, keepdims=False),
                segment_start=segment_start,
                scale=scale,
                prefix=slots,
                prefix_length=length,
                query_offset=offset,
            )
            return (block.mlp(block.attention_output(x, attended)), cache), None

        layers = (self.blocks, kv, jnp.arange(self.config.num_layers))
        (x, cache), _ = jax.lax.scan(body, (self.embed(token_ids), cache), layers)
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), cache

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits; meant for few positions, since [B, T, V] is large."""
        head = self.embedding if self.lm_head is None else self.lm_head
        return jnp.einsum(
            "BTD,VD->BTV",
            hidden,
            head[...],
            preferred_element_type=jnp.float32,
            out_sharding=P(DATA, None, MODEL),
        )


def abstract_transformer(config: ModelConfig, dtype=jnp.float32) -> Transformer:
    """The model with shapes, dtypes and specs in place of weights: what importers fill in."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=dtype))


def initialize(config: ModelConfig, seed: int, dtype=jnp.float32) -> Transformer:
    """A model with fresh weights on the current mesh."""
    specs = jax.tree.map(
        lambda param: param.get_metadata()["spec"],
        nnx.state(abstract_transformer(config, dtype)),
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    graphdef = nnx.graphdef(abstract_transformer(config, dtype))

    @jax.jit
    def init():
        state = nnx.state(Transformer(config, rngs=nnx.Rngs(seed), dtype=dtype))
        return jax.tree.map(jax.sharding.reshard, nnx.as_pure(state), nnx.as_pure(specs))

    return nnx.merge(graphdef, init())
