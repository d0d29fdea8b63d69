"""The transformer of Llama, Mistral, Qwen2.5 and Qwen3: blocks stacked on a leading L axis.

It takes token ids with their positions and, optionally, a KV prefix per layer that all rows share
(a cartridge, or the real KV of a chunk) and a decode cache; it hands on hidden states. Blocks run
in one `jax.lax.scan`, so compile time does not grow with L. What differs between the families is
biases and norms on q and k, told by the config. Modules are pytrees: pass them to `jax.jit` and
`jax.grad` as arguments.

Time of a forward grows with B * T * (weights + L * N * H * (P + T / 2)); activations kept for a
backward are B * T * D per layer, the rest is recomputed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention import SAVED_NAMES, attention
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.linear import Embedding, Linear
from cartridges_jax.models.rope import Turn, apply_rope, rope_angles


class KV(NamedTuple):
    """Rotated keys and values: of a prefix [L, P, K, H], or of rows [L, B, S, K, H].

    A decode cache keeps heads before tokens: [L, K, P, H] and [L, B, K, S, H].
    """

    k: jax.Array
    v: jax.Array

    def heads_first(self) -> "KV":
        """From [..., tokens, heads, H] to the layout of a decode cache."""
        return KV(self.k.swapaxes(-2, -3), self.v.swapaxes(-2, -3))


class Prefix(NamedTuple):
    """A context as the model's functions take it: shared by all rows, without a batch axis.

    `kv` is [L, P, K, H], of which the first `length` slots are live; tokens that follow it start
    at rope position `next_position`.
    """

    kv: KV
    length: jax.Array  # int32 scalar
    next_position: jax.Array  # int32 scalar


def rms_norm(x: Float[Array, "*A D"], weight: Float[Array, "D"], eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32."""
    f = x.astype(jnp.float32)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + eps)
    return (f * weight.astype(jnp.float32)).astype(x.dtype)


def _norm(shape: tuple[int, ...], dtype) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, dtype), spec=P())


class Block(nnx.Module):
    """All blocks of the model: every weight has a leading L axis, which `jax.lax.scan` removes."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype):
        L, D, H = config.num_layers, config.hidden_size, config.head_dim
        linear = functools.partial(Linear, config=config, rngs=rngs, dtype=dtype)
        self.attn_norm = _norm((L, D), dtype)
        self.q = linear("BTD,DNH->BTNH", bias=config.qkv_bias)
        self.k = linear("BTD,DKH->BTKH", bias=config.qkv_bias)
        self.v = linear("BTD,DKH->BTKH", bias=config.qkv_bias)
        self.q_norm = _norm((L, H), dtype) if config.qk_norm else None
        self.k_norm = _norm((L, H), dtype) if config.qk_norm else None
        self.o = linear("BTNH,NHD->BTD", bias=config.output_bias)
        self.mlp_norm = _norm((L, D), dtype)
        self.gate = linear("BTD,DF->BTF", bias=config.mlp_bias)
        self.up = linear("BTD,DF->BTF", bias=config.mlp_bias)
        self.down = linear("BTF,FD->BTD", bias=config.mlp_bias)
        self.norm_eps = config.norm_eps

    def qkv(self, x: jax.Array, turn: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns rotated queries [B, T, N, H], rotated keys and values [B, T, K, H]."""
        x = rms_norm(x, self.attn_norm[...], self.norm_eps)
        q, k = self.q(x), self.k(x)
        if self.q_norm is not None and self.k_norm is not None:
            q = rms_norm(q, self.q_norm[...], self.norm_eps)
            k = rms_norm(k, self.k_norm[...], self.norm_eps)
        return apply_rope(q, turn), apply_rope(k, turn), self.v(x)

    def attention_output(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        return x + self.o(attended)

    def mlp(self, x: jax.Array) -> jax.Array:
        h = rms_norm(x, self.mlp_norm[...], self.norm_eps)
        return x + self.down(jax.nn.silu(self.gate(h)) * self.up(h))


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm and LM head."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.config = config
        self.embedding = Embedding(config, rngs=rngs, dtype=dtype)
        self.blocks = Block(config, rngs=rngs, dtype=dtype)
        self.final_norm = _norm((config.hidden_size,), dtype)
        self.lm_head = None if config.tie_embeddings else Embedding(config, rngs=rngs, dtype=dtype)

    @property
    def dtype(self) -> Any:
        """Of activations and the KV cache, whatever the weights are stored in."""
        return self.final_norm[...].dtype

    @property
    def is_quantized(self) -> bool:
        """Whether the matrices are int8."""
        return self.embedding.scale is not None

    def turn(self, positions: Int[Array, "B T"]) -> Turn:
        """Cosines and sines of the positions."""
        return rope_angles(positions.astype(jnp.float32), self.config.rope, self.config.head_dim)

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
        turn = self.turn(positions)
        scale = self.config.head_dim**-0.5
        kv, length = (None, None) if prefix is None else (prefix.kv, prefix.length)

        def body(x, layer):
            block, slots = layer
            q, k, v = block.qkv(x, turn)
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

        policy = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        x, own = jax.lax.scan(body, self.embedding(token_ids, self.dtype), (self.blocks, kv))
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
        """Runs a few new tokens against `cache` [L, B, K, S, H], writing them at `offset`.

        Arguments as in `__call__`, but the prefix is [L, K, P, H]; `segment_start` counts in cache
        indices. The cache is carried through the layers and updated in place: a step moves one
        token of it, not all.
        """
        turn = self.turn(positions)
        scale = self.config.head_dim**-0.5
        kv, length = (None, None) if prefix is None else (prefix.kv, prefix.length)

        def body(carry, layer):
            x, cache = carry
            block, slots, index = layer
            q, k, v = block.qkv(x, turn)
            at = (index, 0, 0, offset, 0)
            new = KV(k[None], v[None]).heads_first()
            cache = KV(
                jax.lax.dynamic_update_slice(cache.k, new.k.astype(cache.k.dtype), at),
                jax.lax.dynamic_update_slice(cache.v, new.v.astype(cache.v.dtype), at),
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
                heads_first=True,
            )
            return (block.mlp(block.attention_output(x, attended)), cache), None

        layers = (self.blocks, kv, jnp.arange(self.config.num_layers))
        (x, cache), _ = jax.lax.scan(body, (self.embedding(token_ids, self.dtype), cache), layers)
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), cache

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits; meant for few positions, since [B, T, V] is large."""
        head = self.embedding if self.lm_head is None else self.lm_head
        return head.logits(hidden)


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
