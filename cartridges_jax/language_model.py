"""The public object: a frozen model with its tokenizer, ready to read, answer and use cartridges.

`loading.load_model` makes one. Every method enters the model's mesh, so the library works without
an entry point.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cartridges_jax import sharding
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.composition import JOINED, Composition, Place, places, put
from cartridges_jax.config import digest
from cartridges_jax.engine.answers import Generation, GenerationConfig, settled
from cartridges_jax.engine.engine import Engine
from cartridges_jax.engine.memory import EngineConfig
from cartridges_jax.engine.requests import Context, Request
from cartridges_jax.engine.sampling import Sampling
from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import ChatTemplate, Message
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.parts import stop_ids
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.transformer import KV, Prefix, Transformer
from cartridges_jax.shapes import few_sizes, round_up

_log = logging.getLogger(__name__)

PIECE = 8192  # tokens of a context that are read at a time
LEAST_PREFIX = 128  # slots; prefixes read from text are padded to few sizes from this one on

Prompt = str | Sequence[Message] | Sequence[int]


@functools.partial(jax.jit, static_argnames=("with_kv",))
def _forward(model: Transformer, token_ids, positions, prefix, *, with_kv: bool):
    hidden, kv = model(token_ids, positions, None, prefix=prefix)
    return _of_first_row(kv) if with_kv else model.logits(hidden)


@functools.partial(jax.jit, donate_argnames="kv")
def _read_piece(model: Transformer, token_ids, positions, kv: KV, length) -> KV:
    """Reads more tokens behind the first `length` of `kv`, and puts their own KV there."""
    prefix = Prefix(kv, length, length)
    _, own = model(token_ids, positions, None, prefix=prefix)
    own = _of_first_row(own)
    return KV(*(
        jax.lax.dynamic_update_slice(x, new, (0, length, 0, 0))
        for x, new in zip(kv, own, strict=True)
    ))  # fmt: skip


def _of_first_row(kv: KV) -> KV:
    """Of rows that are the same the first, without gathering the others: [L, T, K, H]."""
    first = (jnp.arange(kv.k.shape[1]) == 0).astype(kv.k.dtype)
    first = jax.sharding.reshard(first, P(sharding.DATA))
    spec = P(None, None, sharding.head_axis(kv.k.shape[3]), None)
    return KV(*(jnp.einsum("LBPKH,B->LPKH", x, first, out_sharding=spec) for x in kv))


@dataclasses.dataclass(eq=False, repr=False)
class LanguageModel:
    """A frozen base model on a mesh; most callers want `load_model`."""

    transformer: Transformer
    tokenizer: Tokenizer
    template: ChatTemplate
    mesh: Mesh
    _: dataclasses.KW_ONLY
    name: str  # what the caller called it
    weights_hash: str
    file: str = ""  # the name of the one file that holds it, if one does
    engine_config: EngineConfig = EngineConfig()

    @property
    def config(self) -> ModelConfig:
        return self.transformer.config

    @property
    def dtype(self) -> Any:
        return self.transformer.dtype

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What a cartridge remembers of its model; two models with equal ones are the same."""
        fields = json.loads(json.dumps(dataclasses.asdict(self.config)))  # as a file gives it back
        return {
            "name": self.name,
            "file": self.file,
            "config": digest(fields),
            "weights": self.weights_hash,
            "tokenizer": self.tokenizer.fingerprint,
            "chat_template": digest(self.template.source),
            "rope": fields["rope"],
            "template_options": self.template.options,
            "dtype": "int8" if self.transformer.is_quantized else jnp.dtype(self.dtype).name,
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The part of `identity` that decides what a stage makes.

        Neither the folder's name nor the dtype of loading is in it.
        """
        keys = (*_IDENTITY_WORDS, "template_options")
        return {key: self.identity[key] for key in keys}

    def check_cartridge(self, cartridge: Cartridge, where: str = "the cartridge") -> None:
        """Raises `InputError` that says what differs if a cartridge was made for another model.

        Another dtype of the same weights, or other options of the template, are only logged.
        """
        L, _, K, H = cartridge.keys.shape
        c = self.config
        if (c.num_layers, c.num_kv_heads, c.head_dim) != (L, K, H):
            raise InputError(
                f"{where} has {L} layers, {K} kv heads of size {H}; the model {self.name} has "
                f"{c.num_layers}, {c.num_kv_heads} and {c.head_dim}"
            )
        theirs = cartridge.provenance.get("model")
        if theirs is None:
            return  # put together in memory; a file always says
        if not isinstance(theirs, dict):
            raise InputError(f"{where} has a damaged provenance: model is {theirs!r}")
        ours = self.identity
        for key, what in _IDENTITY_WORDS.items():
            if theirs.get(key) != ours[key]:
                raise InputError(
                    f"{where} was made for the model {theirs.get('name')!r}, whose {what} differs "
                    f"from that of {ours['name']!r}: {_short(theirs.get(key))} against "
                    f"{_short(ours[key])}; load it on its own model, or make it again on this one"
                )
        for key in ("dtype", "template_options"):
            if theirs.get(key, ours[key]) != ours[key]:
                _log.warning("%s: its %s was %s, is now %s", where, key, theirs[key], ours[key])

    def logits(self, token_ids: Any, cartridge: Cartridge | None = None) -> jax.Array:
        """Returns the logits of given tokens, for inspection and tests.

        Args:
          token_ids: [B, T] or [T] integers; with a cartridge they start at its `next_position`.
          cartridge: the context, or None.

        Returns:
          [B, T, V] (or [T, V]) float32. The whole tensor is held: keep B * T small.
        """
        ids = self._checked(token_ids)
        tokens = np.atleast_2d(ids)
        rows = self.mesh.shape[sharding.DATA]
        if tokens.shape[0] % rows:
            raise InputError(f"{tokens.shape[0]} rows cannot be shared by {rows} devices")
        prefix = self.as_prefix(cartridge)
        out = self._run(tokens, prefix, with_kv=False)
        return out[0] if ids.ndim == 1 else out

    def kv_as_cartridge(self, token_ids: Any, num_frozen: int = 1) -> Cartridge:
        """Returns the real keys and values of `token_ids` [T] as a cartridge of T slots."""
        ids = self._checked(token_ids)
        if ids.ndim != 1 or not len(ids):
            raise InputError(f"kv_as_cartridge takes a row of tokens, got shape {ids.shape}")
        prefix = self.read(ids)
        keys, values = (x[:, : len(ids)] for x in prefix.kv)
        made_of = {"model": self.identity}
        return Cartridge(keys, values, num_frozen=num_frozen, provenance=made_of)

    def read(self, token_ids: Any) -> Prefix:
        """Runs tokens [T] once and returns their KV as a prefix, padded to few distinct sizes.

        More than `PIECE` are read piece by piece, so that memory beside the KV does not grow.
        """
        ids = self._checked(token_ids)
        if len(ids) > PIECE:
            return self._read_in_pieces(ids)
        width = few_sizes(len(ids), LEAST_PREFIX)
        rows = np.zeros((self.mesh.shape[sharding.DATA], width), np.int32)
        rows[:, : len(ids)] = ids
        kv = self._run(rows, None, with_kv=True)
        length = jnp.asarray(len(ids), jnp.int32)
        return Prefix(kv, length, length)

    def _read_in_pieces(self, ids: np.ndarray) -> Prefix:
        c = self.config
        width = round_up(len(ids), PIECE)
        tokens = np.zeros((self.mesh.shape[sharding.DATA], width), np.int32)
        tokens[:, : len(ids)] = ids
        positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
        with jax.set_mesh(self.mesh):
            spec = P(None, None, sharding.head_axis(c.num_kv_heads), None)
            shape = (c.num_layers, width, c.num_kv_heads, c.head_dim)
            kv = KV(*(jnp.zeros(shape, self.dtype, out_sharding=spec) for _ in range(2)))
            for start in range(0, width, PIECE):
                piece = [
                    sharding.place(self.mesh, x[:, start : start + PIECE], sharding.TOKENS_BT)
                    for x in (tokens, positions)
                ]
                kv = _read_piece(self.transformer, *piece, kv, jnp.int32(start))
        length = jnp.asarray(len(ids), jnp.int32)
        return Prefix(kv, length, length)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of the configs, and what closes the template's turns."""
        return stop_ids(self.config, self.template)

    def as_turn(self, answer: Generation) -> Message:
        """An answer as a turn of a conversation, token for token, without the one that ends it."""
        ids = answer.token_ids
        said = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return Message(role="assistant", content=answer.text, token_ids=said)

    @functools.cached_property
    def engine(self) -> Engine:
        """What answers; its pool takes memory from the first answer on, see `release_engine`."""
        return Engine(self.transformer, self.tokenizer, self.mesh, self.engine_config)

    def release_engine(self) -> None:
        """Ends what is in flight and frees the pool; the next answer makes another one."""
        engine = self.__dict__.pop("engine", None)
        if engine is not None:
            engine.close()

    def context(
        self,
        made_of: Cartridge | Prefix | Sequence[Cartridge | Prefix] | Sequence[int],
        how: Composition = JOINED,
    ) -> Context:
        """A context that requests may follow: slots that are loaded once, or tokens read once.

        Args:
          made_of: a cartridge, several that are joined in their order, or token ids.
          how: several are joined; see `composition`.

        Raises:
          InputError: if a cartridge belongs to another model.
        """
        parts: list[Any] = [made_of] if isinstance(made_of, Cartridge | Prefix) else list(made_of)
        if not (parts and isinstance(parts[0], Cartridge | Prefix)):
            return self.engine.context(self._checked(parts).tolist())
        for part in parts:
            if isinstance(part, Cartridge):
                self.check_cartridge(part)
        sizes = [
            (p.num_slots, p.next_position)
            if isinstance(p, Cartridge)
            else (int(p.length), int(p.next_position))
            for p in parts
        ]
        slots = [
            (place.length, place.positions, functools.partial(self._slots_at, part, place))
            for part, place in zip(parts, places(sizes, how), strict=True)
        ]
        return self.engine.context_of(slots)

    def _slots_at(self, part: Cartridge | Prefix, place: Place) -> KV:
        prefix = self.as_prefix(part)
        assert prefix is not None
        with jax.set_mesh(self.mesh):
            return put(prefix.kv, place, self.config.rope)

    def generate(
        self,
        prompts: Sequence[Prompt],
        cartridge: Cartridge | Prefix | Context | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Answers prompts, as many at a time as the engine has rows.

        Arguments and errors as of `generate_as_completed`. Returns one `Generation` per prompt, in
        order.
        """
        answers = dict(self.generate_as_completed(prompts, cartridge, **options))
        return [answers[i] for i in range(len(prompts))]

    def generate_as_completed(
        self,
        prompts: Sequence[Prompt],
        cartridge: Cartridge | Prefix | Context | None = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] | None = None,
        enough: Callable[[str], bool] | None = None,
        top_logprobs: int = 0,
        prompt_logprobs: bool = False,
    ) -> Iterator[tuple[int, Generation]]:
        """Yields the answers to prompts with their indices, as they come.

        Args:
          prompts: each a string (one user message), a list of messages, or a list of token ids
            that is continued as it stands.
          cartridge: the context that all prompts share, or None. What `context` has made is loaded
            once for all calls.
          max_new_tokens: most tokens of an answer.
          temperature: 0 for greedy decoding.
          top_k: samples among the k likeliest tokens; 0 for all.
          top_p: samples among the fewest tokens with this share of the probability.
          min_p: samples among tokens at least this many times as likely as the likeliest.
          seed: of sampling; prompt i uses seed + i, whatever runs beside it.
          seeds: one for each prompt, instead of `seed`.
          stop: texts that end an answer; they are not part of it.
          stop_token_ids: tokens that end an answer; None for the model's own `stop_ids`, an empty
            list for none.
          enough: ends an answer whose text so far it is true of; it is asked every few tokens.
          top_logprobs: the likeliest tokens to tell at each place of an answer.
          prompt_logprobs: also tells the log-probabilities of the prompt's own tokens, and the
            likeliest ones there.

        Raises:
          InputError: if the cartridge belongs to another model, a setting cannot be used, a prompt
            is empty, or it does not fit the window with its answer.
        """
        sampling = Sampling(float(temperature), top_k, float(top_p), float(min_p))
        config = self._generation_config(
            max_new_tokens, sampling, stop, stop_token_ids, enough, top_logprobs, prompt_logprobs
        )
        given = range(seed, seed + len(prompts)) if seeds is None else seeds
        if len(given) != len(prompts):
            raise InputError(f"{len(given)} seeds were given for {len(prompts)} prompts")
        context = self._as_context(cartridge)
        both = zip(prompts, given, strict=True)
        yield from self.engine.answers(
            self._request(prompt, context, config, own) for prompt, own in both
        )

    def stream(
        self,
        prompt: Prompt,
        cartridge: Cartridge | Prefix | Context | None = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Yields the text of one answer as it grows; arguments as in `generate`.

        The pieces together are the text that `generate` returns.
        """
        sampling = Sampling(float(temperature), top_k, float(top_p), float(min_p))
        config = self._generation_config(max_new_tokens, sampling, stop, None)
        request = self._request(prompt, self._as_context(cartridge), config, seed)
        shown = 0
        for answer in self.engine.watch(self.engine.submit(request)):
            new = settled(answer, config.stop)[shown:]
            shown += len(new)
            if new:
                yield new

    def _as_context(self, cartridge: Cartridge | Prefix | Context | None) -> Context | None:
        if cartridge is None or isinstance(cartridge, Context):
            return cartridge
        return self.context(cartridge)

    def _request(
        self, prompt: Prompt, context: Context | None, config: GenerationConfig, seed: int
    ) -> Request:
        ids = self.render_prompt(prompt, has_context=context is not None)
        return Request(ids, config, seed % 2**31, context)

    def _generation_config(
        self,
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        stop_ids: Sequence[int] | None,
        enough: Callable[[str], bool] | None = None,
        top_logprobs: int = 0,
        prompt_logprobs: bool = False,
    ) -> GenerationConfig:
        if isinstance(stop, str):
            raise InputError(f"stop must be a list of texts, got {stop!r}")
        ends = self.stop_ids if stop_ids is None else tuple(stop_ids)
        config = GenerationConfig(
            max_new_tokens, sampling, tuple(stop), ends, enough, top_logprobs, prompt_logprobs
        )
        config.check()
        return config

    def _checked(self, token_ids: Any) -> np.ndarray:
        """Token ids as int32, all of them of this model."""
        ids = np.asarray(token_ids, np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.config.vocab_size):
            wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)].flat[0]
            raise InputError(f"token id {wrong} is none of the {self.config.vocab_size} there are")
        return ids.astype(np.int32)

    def render_prompt(self, prompt: Prompt, *, has_context: bool) -> list[int]:
        """Returns the token ids of a prompt: a suffix where a context precedes it.

        Without one, a conversation that opens with a system turn is rendered whole, and any other
        follows the empty context.
        """
        if isinstance(prompt, str):
            prompt = [Message(role="user", content=prompt)]
        if not prompt:
            return []
        if not isinstance(prompt[0], dict):
            return self._checked(prompt).tolist()
        messages: Sequence[Message] = prompt  # type: ignore[assignment]
        if not has_context:
            return self.template.render(messages, add_generation_prompt=True)
        return self.template.render_turns(messages, add_generation_prompt=True)

    def as_prefix(self, cartridge: Cartridge | Prefix | None) -> Prefix | None:
        """Casts a cartridge to the model's dtype and puts it on its mesh; checks that it fits."""
        if not isinstance(cartridge, Cartridge):
            return cartridge
        self.check_cartridge(cartridge)
        with jax.set_mesh(self.mesh):
            spec = P(None, None, sharding.head_axis(self.config.num_kv_heads), None)
            prefix = cartridge.prefix(self.dtype)
            placed = [sharding.place(self.mesh, x, spec) for x in prefix.kv]
        return prefix._replace(kv=KV(*placed))

    def _run(self, tokens: np.ndarray, prefix: Prefix | None, *, with_kv: bool) -> Any:
        start = 0 if prefix is None else int(prefix.next_position)
        positions = np.broadcast_to(
            np.arange(tokens.shape[1], dtype=np.int32) + start, tokens.shape
        )
        with jax.set_mesh(self.mesh):
            return _forward(
                self.transformer,
                sharding.place(self.mesh, tokens, sharding.TOKENS_BT),
                sharding.place(self.mesh, positions, sharding.TOKENS_BT),
                prefix,
                with_kv=with_kv,
            )


_IDENTITY_WORDS = {  # what makes two models different, the most telling first
    "rope": "rotary embedding",
    "config": "configuration",
    "weights": "weights",
    "tokenizer": "tokenizer",
    "chat_template": "chat template",
}


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
