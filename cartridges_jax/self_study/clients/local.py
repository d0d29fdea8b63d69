"""Our own model as a client: it reads a chunk once, for all requests of both bots."""

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cartridges_jax.corpus import Chunk
from cartridges_jax.engine.requests import Context
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.clients.base import Reply
from cartridges_jax.sharding import DATA


@dataclasses.dataclass(frozen=True)
class LocalClient:
    """Our own model as a client; its readers of one chunk share its KV."""

    model: LanguageModel
    _chunks: weakref.WeakValueDictionary[tuple[str, str], Context] = dataclasses.field(
        default_factory=weakref.WeakValueDictionary
    )

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.model.fingerprint

    @property
    def opens_thoughts(self) -> bool:
        return self.model.template.opens_thoughts

    @property
    def requests_at_once(self) -> int:
        return self.model.engine_config.max_rows * self.model.mesh.shape[DATA]

    def close(self) -> None:
        self.model.release_engine()

    def read(self, chunk: Chunk, opening: Sequence[Message] = ()) -> "LocalReader":
        context = self._chunks.get((chunk.title, chunk.text))
        if context is None:
            ids = self.model.template.render_context(chunk.title, chunk.text)
            context = self._chunks[chunk.title, chunk.text] = self.model.context(ids)
        opened: list[int] = []
        if opening:
            opened = self.model.template.render_turns(opening)
            probe = [*opening, Message(role="user", content="x")]
            # A template may render a turn otherwise once others follow: then it is read each time.
            if self.model.render_prompt(probe, has_context=True)[: len(opened)] != opened:
                opened = []
        if opened:
            context = self.model.engine.context(opened, behind=context)
        return LocalReader(self.model, context, opening, len(opened))


@dataclasses.dataclass(frozen=True)
class LocalReader:
    """A chunk, and turns behind it, whose KV is computed once for all requests."""

    model: LanguageModel
    context: Context  # the chunk and the first tokens of the opening
    opening: Sequence[Message]  # turns before every request
    num_opened: int  # how many of their tokens the context holds

    def complete(
        self,
        requests: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
        enough: Callable[[str], bool] | None = None,
    ) -> list[Reply | None]:
        room = self.model.config.window - self.context.next_position - max_new_tokens
        prompts = [
            self.model.render_prompt([*self.opening, *request], has_context=True)
            for request in requests
        ]
        prompts = [prompt[self.num_opened :] for prompt in prompts]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
        replies: list[Reply | None] = [None] * len(requests)
        if not fitting:
            return replies
        answers = self.model.generate(
            [prompts[i] for i in fitting],
            self.context,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=[seeds[i] for i in fitting],
            enough=enough,
        )
        for i, a in zip(fitting, answers, strict=True):
            sure = math.exp(sum(a.logprobs) / max(len(a.logprobs), 1))
            ids = self.model.as_turn(a).get("token_ids")
            replies[i] = Reply(a.text, sure, a.finish_reason == "stop", ids)
        return replies
