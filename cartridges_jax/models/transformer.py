"""The transformer of Llama, Mistral, Qwen2.5 and Qwen3: blocks stacked on a leading L axis.

It takes token ids with their positions and, optionally, a KV prefix per layer that all rows share
(a cartridge, or the real KV of a chunk); or tokens whose context is on the pages of the engine. It
hands on hidden states. Blocks run in one `jax.lax.scan`, so compile time does not grow with L; the
engine takes them one by one on a CPU (`unstacked`). What differs between the families is biases and
norms on q and k, told by the config. Modules are pytrees: pass them to `jax.jit` and `jax.grad` as
arguments.

Time of a forward grows with B * T * (weights + L * N * H * (P + T / 2)); activations kept for a
backward are B * T * D per layer, on a CPU also B * T * (2 * F + (2 * N + 2 * K) * H + D) of its
products; the rest is recomputed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cartridges_jax.attention import SAVED_NAMES, Mask, PagedKV, Step, attention, paged_attention
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.linear import PRODUCT, Embedding, Head, Linear
from cartridges_jax.models.rope import Turn, apply_rope, rope_angles
from cartridges_jax.sharding import DATA, MODEL, on_cpu, weight_axes


class KV(NamedTuple):
    """Rotated keys and values: of a prefix [L, P, K, H], or of rows [L, B, S, K, H]."""

    k: Any
    v: Any


class Prefix(NamedTuple):
    """A context as the model's functions take it: shared by all rows, without a batch axis.

    `kv` is [L, P, K, H], of which the first `length` slots are live; tokens that follow it start at
    rope position `next_position`.
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

    def __init__(
        self,
        config: ModelConfig,
        *,
        places: dict[str, str | None],
        rngs: nnx.Rngs,
        dtype,
        norm_dtype,
    ):
        L, D, H = config.num_layers, config.hidden_size, config.head_dim
        linear = functools.partial(
            Linear, config=config, places=places, rngs=rngs, dtype=dtype, bias_dtype=norm_dtype
        )
        self.attn_norm = _norm((L, D), norm_dtype)
        self.q = linear("BTD,DNH->BTNH", bias=config.qkv_bias)
        self.k = linear("BTD,DKH->BTKH", bias=config.qkv_bias)
        self.v = linear("BTD,DKH->BTKH", bias=config.qkv_bias)
        self.q_norm = _norm((L, H), norm_dtype) if config.qk_norm else None
        self.k_norm = _norm((L, H), norm_dtype) if config.qk_norm else None
        self.o = linear("BTNH,NHD->BTD", bias=config.output_bias)
        self.mlp_norm = _norm((L, D), norm_dtype)
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

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        norm_dtype: Any = None,
        fsdp: bool = False,
    ):
        """Makes fresh weights.

        Args:
          config: the sizes.
          rngs: of the weights.
          dtype: of the matrices.
          norm_dtype: of norms and biases, and so of activations and KV; None for `dtype`.
          fsdp: matrices are split over "data" too, and gathered where they are used.
        """
        norm_dtype = dtype if norm_dtype is None else norm_dtype
        self.config = config
        places = weight_axes(config.num_heads, config.num_kv_heads, config.hidden_size, fsdp)
        table = functools.partial(Embedding, config, places=places, rngs=rngs, dtype=dtype)
        self.embedding = table()
        self.blocks: Any = Block(
            config, places=places, rngs=rngs, dtype=dtype, norm_dtype=norm_dtype
        )
        self.final_norm = _norm((config.hidden_size,), norm_dtype)
        self.lm_head = None if config.tie_embeddings else table()

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
        segment_start: Int[Array, "B T"] | None,
        *,
        prefix: Prefix | None = None,
        save_products: bool | None = None,
    ) -> tuple[Float[Array, "B T D"], KV]:
        """Runs whole rows.

        Args:
          token_ids: the rows.
          positions: rope position of each token; with a prefix they start at its next position.
          segment_start: index in the row of the first token of each token's own segment; None where
            a row is one.
          prefix: seen by every token of every row; None for none. It may have an axis C behind L,
            for C groups of rows, one after the other.
          save_products: whether a backward pass finds the layers' products, or computes them again
            from each layer's input; None for what suits the platform (a CPU saves them).

        Returns:
          The hidden states before the LM head, normed, and the rows' own KV [L, B, T, K, H]
          (dead code, and removed by the compiler, where the caller drops it).
        """
        turn = self.turn(positions)
        scale = self.config.head_dim**-0.5
        kv, length = (None, None) if prefix is None else (prefix.kv, prefix.length)
        mask = Mask(segment_start, length)

        def body(x, block, slots, _):
            q, k, v = block.qkv(x, turn)
            attended = attention(q, k, v, mask, scale=scale, prefix=slots)
            return block.mlp(block.attention_output(x, attended)), KV(k, v)

        x, own = self._through_layers(
            body, self.embedding(token_ids, self.dtype), kv, save_products
        )
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), own

    def on_pages(
        self,
        token_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        pool: PagedKV,
        step: Step,
    ) -> tuple[Float[Array, "B T D"], PagedKV]:
        """Runs a step of the engine: tokens of many rows, whose keys and values go to pages.

        Args:
          token_ids: decoding rows, of one token each, or one row on each device of "data", which
            holds the tokens of many prompts.
          positions: rope position of each token.
          pool: carried through the layers and updated in place; of an unstacked model by layers.
          step: where each token is written, and what it sees.

        Returns:
          The hidden states before the LM head, normed, and the pool.
        """
        turn = self.turn(positions)
        scale = self.config.head_dim**-0.5

        def body(carry, block, _, index):
            x, pool = carry
            q, k, v = block.qkv(x, turn)
            attended, pool = paged_attention(q, k, v, pool, index, step, scale=scale)
            return (block.mlp(block.attention_output(x, attended)), pool), None

        start = (self.embedding(token_ids, self.dtype), pool)
        (x, pool), _ = self._through_layers(body, start, None)
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), pool

    def _through_layers(
        self, body: Any, carry: Any, slots: KV | None, save_products: bool | None = None
    ) -> tuple[Any, Any]:
        """Runs `body(carry, block, slots, index)` layer after layer: the one loop over layers.

        It returns the last carry and what each layer handed out, stacked on L. Activations of a
        layer are computed again in the backward pass, but for what attention saves and, where that
        is wanted or on a CPU, where rows are few and products slow, for its products.
        """
        if isinstance(self.blocks, nnx.List):
            for i, block in enumerate(self.blocks):
                carry, _ = body(carry, block, None, i)
            return carry, None

        def step(carry: Any, layer: Any) -> Any:
            block, slots, index = layer
            return body(carry, jax.tree.map(_from_slices, block), slots, index)

        save_products = on_cpu() if save_products is None else save_products
        saved = (*SAVED_NAMES, PRODUCT) if save_products else SAVED_NAMES
        policy = jax.checkpoint_policies.save_only_these_names(*saved)
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        blocks = jax.tree.map(_for_slices, self.blocks)
        return jax.lax.scan(step, carry, (blocks, slots, jnp.arange(self.config.num_layers)))

    def unstacked(self) -> "Transformer":
        """The same model with a list of blocks in place of stacked ones; do not call it in `jit`.

        For decoding on a CPU, where a scan copies each layer's weights out of the stack at every
        step. The blocks' weights are held a second time, all others are shared.
        """
        whole = nnx.merge(*nnx.split(self))
        whole.blocks = nnx.List(_layers_apart(self.blocks))
        return whole

    @property
    def head(self) -> Head:
        """The LM head."""
        return (self.embedding if self.lm_head is None else self.lm_head).head

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits; meant for few positions, since [B, T, V] is large."""
        return self.head.logits(hidden, P(DATA, None, MODEL))


@jax.jit
def _layers_apart(blocks: Block) -> list[Block]:
    graphdef, state = nnx.split(blocks)
    count = blocks.attn_norm[...].shape[0]
    return [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(count)]


# XLA's CPU compiler makes float32 of a whole bfloat16 array that a loop slices; not of integers.
def _for_slices(x: jax.Array) -> jax.Array:
    as_integers = x.dtype == jnp.bfloat16 and on_cpu()
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if as_integers else x


def _from_slices(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def abstract_transformer(
    config: ModelConfig,
    dtype=jnp.float32,
    norm_dtype: Any = None,
    fsdp: bool = False,
) -> Transformer:
    """The model with shapes, dtypes and specs in place of weights: what importers fill in."""
    return nnx.eval_shape(
        lambda: Transformer(
            config,
            rngs=nnx.Rngs(0),
            dtype=dtype,
            norm_dtype=norm_dtype,
            fsdp=fsdp,
        )
    )


def initialize(
    config: ModelConfig, seed: int, dtype=jnp.float32, fsdp: bool = False
) -> Transformer:
    """A model with fresh weights on the current mesh."""
    abstract = abstract_transformer(config, dtype, fsdp=fsdp)
    specs = jax.tree.map(
        lambda param: param.get_metadata()["spec"],
        nnx.state(abstract),
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    graphdef = nnx.graphdef(abstract)

    @jax.jit
    def init():
        made = Transformer(config, rngs=nnx.Rngs(seed), dtype=dtype, fsdp=fsdp)
        state = nnx.state(made)
        return jax.tree.map(jax.sharding.reshard, nnx.as_pure(state), nnx.as_pure(specs))

    return nnx.merge(graphdef, init())
