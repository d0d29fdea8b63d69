"""Questions about a chunk by template instead of by the model: what better ones would be worth.

Everything else is as in self-study: the same chunks, and the model's own answers.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from cartridges_jax import LanguageModel
from cartridges_jax.corpus import Chunk
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.clients.base import Reply
from cartridges_jax.self_study.clients.local import LocalClient, LocalReader
from experiments.embedded_world.documents import shown_part
from experiments.embedded_world.world import asking
from experiments.embedded_world.world.schema import GeneratedDocument

TRIES = 20  # for a question about a chunk; some chunks have nothing to ask about


class TemplateClient:
    """Asks what the ground truth can answer, in the wordings of training; the model answers.

    Args:
      model: that answers.
      made: the document that is asked about, with its ground truth.
    """

    opens_thoughts = False
    requests_at_once = 1

    def __init__(self, model: LanguageModel, made: GeneratedDocument):
        self._made = dataclasses.replace(made, split="train")
        self._tokenizer = model.template.tokenizer
        self._token_ids = self._tokenizer.encode(made.text)
        self._local = LocalClient(model)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._local.fingerprint | {"questions": "by template"}

    def close(self) -> None:
        self._local.close()

    def read(self, chunk: Chunk, opening: Sequence[Message] = ()) -> "TemplateReader":
        del opening  # nothing is asked by the model
        shown = shown_part(self._made, chunk, self._tokenizer, self._token_ids)
        # What only another chunk says is not missing from the text.
        shown = dataclasses.replace(shown, unstated=self._made.unstated)
        return TemplateReader(self._made, shown, self._local.read(chunk))


class TemplateReader:
    """One chunk: the first call asks, the second answers."""

    def __init__(self, made: GeneratedDocument, shown: GeneratedDocument, local: LocalReader):
        self._shown, self._local, self._has_asked = shown, local, False
        # Facts that the text corrects elsewhere are not asked for.
        self._known = {f for f, s in shown.facts.items() if made.facts[f].value == s.value}

    def complete(
        self,
        requests: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
        enough: Callable[[str], bool] | None = None,
    ) -> list[Reply | None]:
        if self._has_asked:
            return self._local.complete(
                requests, temperature=temperature, max_new_tokens=max_new_tokens, seeds=seeds,
                enough=enough,
            )  # fmt: skip
        self._has_asked = True
        turns = [self._draw(random.Random(seed)) for seed in seeds]
        return [Reply(turn.question, 1.0) if turn else None for turn in turns]

    def _draw(self, rng: random.Random) -> asking.Turn | None:
        for _ in range(TRIES):
            turn = asking.draw_turn(rng, self._shown)
            if turn and self._known.issuperset(turn.facts):
                return turn
        return None
