"""Who plays the two bots: anything that answers messages about a chunk.

`LocalClient` is our own model: it reads the chunk once and shares its KV among all requests.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from cartridges_jax.corpus import Chunk
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.models.transformer import Prefix


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a bot said. `confidence` is the geometric mean of the probabilities of its tokens."""

    text: str
    confidence: float


@runtime_checkable
class ChunkReader(Protocol):
    """One chunk in a model's context."""

    def complete(
        self,
        requests: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
    ) -> list[Reply | None]:
        """Answers every request, in order.

        None where an answer did not end within `max_new_tokens`, or where the chunk and the request
        leave no room for so many in the model's window.
        """
        ...


@runtime_checkable
class Client(Protocol):
    """A model that can read chunks."""

    @property
    def fingerprint(self) -> dict[str, Any]: ...

    def read(self, chunk: Chunk) -> ChunkReader:
        """Reads a chunk, of which the text may be empty: then the title is all it knows."""
        ...


class LocalClient:
    """Our own model as a client."""

    def __init__(self, model: LanguageModel, batch_size: int):
        self._model = model
        self._batch_size = batch_size

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._model.fingerprint

    def read(self, chunk: Chunk) -> "LocalReader":
        context = self._model.template.render_context(chunk.title, chunk.text)
        return LocalReader(self._model, self._model.read(context), self._batch_size)


class LocalReader:
    """A chunk whose KV is computed once for all requests about it."""

    def __init__(self, model: LanguageModel, prefix: Prefix, batch_size: int):
        self._model, self._prefix, self._batch_size = model, prefix, batch_size

    def complete(
        self,
        requests: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
    ) -> list[Reply | None]:
        room = self._model.config.window - int(self._prefix.next_position) - max_new_tokens
        prompts = [self._model.render_prompt(request, has_context=True) for request in requests]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
        replies: list[Reply | None] = [None] * len(requests)
        if not fitting:
            return replies
        answers = self._model.generate(
            [prompts[i] for i in fitting],
            self._prefix,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=[seeds[i] for i in fitting],
            batch_size=self._batch_size,
        )
        for i, a in zip(fitting, answers, strict=True):
            if a.finish_reason == "stop":
                sure = math.exp(sum(a.logprobs) / max(len(a.logprobs), 1))
                replies[i] = Reply(a.text, sure)
        return replies
