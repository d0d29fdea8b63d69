"""Our own model as a client: it reads a chunk once and shares its KV among all requests."""

import math
from collections.abc import Sequence
from typing import Any

from cartridges_jax.corpus import Chunk
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.models.transformer import Prefix
from cartridges_jax.self_study.clients.base import Reply


class LocalClient:
    """Our own model as a client."""

    def __init__(self, model: LanguageModel, batch_size: int):
        self._model = model
        self._batch_size = batch_size

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._model.fingerprint

    def read(self, chunk: Chunk, opening: Sequence[Message] = ()) -> "LocalReader":
        context = self._model.template.render_context(chunk.title, chunk.text)
        opened: list[int] = []
        if opening:
            opened = self._model.template.render_suffix(opening).token_ids.tolist()
            probe = [*opening, Message(role="user", content="x")]
            # A template may render a turn otherwise once others follow: then it is read each time.
            if self._model.render_prompt(probe, has_context=True)[: len(opened)] != opened:
                opened = []
        prefix = self._model.read([*context, *opened])
        return LocalReader(self._model, prefix, self._batch_size, opening, len(opened))


class LocalReader:
    """A chunk, and turns behind it, whose KV is computed once for all requests."""

    def __init__(
        self,
        model: LanguageModel,
        prefix: Prefix,
        batch_size: int,
        opening: Sequence[Message],
        num_opened: int,
    ):
        """Takes what was read.

        Args:
          model: that reads.
          prefix: the chunk and the first tokens of the opening.
          batch_size: requests that run together.
          opening: turns before every request.
          num_opened: how many of their tokens the prefix holds.
        """
        self._model, self._prefix, self._batch_size = model, prefix, batch_size
        self._opening, self._num_opened = opening, num_opened

    def complete(
        self,
        requests: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
    ) -> list[Reply | None]:
        room = self._model.config.window - int(self._prefix.next_position) - max_new_tokens
        prompts = [
            self._model.render_prompt([*self._opening, *request], has_context=True)
            for request in requests
        ]
        prompts = [prompt[self._num_opened :] for prompt in prompts]
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
            sure = math.exp(sum(a.logprobs) / max(len(a.logprobs), 1))
            replies[i] = Reply(a.text, sure, a.finish_reason == "stop")
        return replies
