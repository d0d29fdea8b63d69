"""Answers: how they are asked for, and what they are as text, while they grow and at their end."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence

from cartridges_jax.engine.sampling import TOP, Sampling
from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How answers are made.

    `stop` are texts that end an answer and are not part of it; `stop_ids` tokens that end one.
    `enough` ends one whose text so far it is true of; it is asked every few tokens. The likeliest
    `top_logprobs` tokens are told at each place, at most `TOP`; with `prompt_logprobs` also at
    those of the prompt, and the log-probabilities of its own tokens from the second one on.
    """

    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    enough: Callable[[str], bool] | None = None
    top_logprobs: int = 0
    prompt_logprobs: bool = False

    @property
    def looks_at_text(self) -> bool:
        """Whether answers have to be read while they grow."""
        return bool(self.stop) or self.enough is not None

    def check(self) -> None:
        """Raises InputError for settings that cannot be used."""
        temperature, top_k, top_p, min_p = self.sampling
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be above 0, got {self.max_new_tokens}")
        if not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
            raise InputError(
                f"{temperature=} and {top_k=} must be numbers of at least 0, {top_p=} above 0 and "
                "at most 1"
            )
        if not 0 <= min_p <= 1 or not 0 <= self.top_logprobs <= TOP:
            raise InputError(
                f"{min_p=} must be a number from 0 to 1, top_logprobs={self.top_logprobs} from 0 "
                f"to {TOP}"
            )
        if not all(self.stop):
            raise InputError(f"stop must be a list of texts, none empty, got {list(self.stop)}")


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer.

    `finish_reason` is "length", or "stop": its turn, a stop text, or enough. `top_logprobs` has, if
    it is asked for, the likeliest tokens at each place, best first. What is told of the prompt
    begins with its second token.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    top_logprobs: list[dict[int, float]] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[float] = dataclasses.field(default_factory=list)
    prompt_top_logprobs: list[dict[int, float]] = dataclasses.field(default_factory=list)


def read_answer(
    tokenizer: Tokenizer,
    ids: list[int],
    logprobs: list[float],
    config: GenerationConfig,
    top: Sequence[dict[int, float]] = (),
) -> Generation:
    """Reads an answer from its tokens so far, cut at a stop text.

    One that is not at its end has the finish_reason "".
    """
    top = list(top)
    ended = bool(ids) and ids[-1] in config.stop_ids
    text = tokenizer.decode(ids[:-1] if ended else ids)
    at = min((text.find(s) for s in config.stop if s in text), default=-1)
    if at >= 0:
        # The tokens that it took to write the stop text, and none after it.
        texts = (tokenizer.decode(ids[:n]) for n in range(len(ids) + 1))
        length = next(n for n, so_far in enumerate(texts) if any(s in so_far for s in config.stop))
        return Generation(text[:at], ids[:length], logprobs[:length], "stop", top[:length])
    ended = ended or (config.enough is not None and config.enough(text))
    reason = "stop" if ended else "length" if len(ids) >= config.max_new_tokens else ""
    return Generation(text, ids, logprobs, reason, top)


def ids_of(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int] | None:
    """The first tokens of an answer that are a text; None if a token goes beyond its end."""
    if tokenizer.decode(ids) == text:
        return list(ids)
    near = bisect.bisect_left(
        range(len(ids)), len(text), key=lambda n: len(tokenizer.decode(ids[:n]))
    )
    # A character of several tokens is as long before it is whole.
    counts = range(max(near - 4, 0), min(near + 4, len(ids)) + 1)
    return next((list(ids[:n]) for n in counts if tokenizer.decode(ids[:n]) == text), None)


def settled(answer: Generation, stop: Sequence[str]) -> str:
    """The part of a growing text that will not change: no cut character, no half of a stop text."""
    if answer.finish_reason:
        return answer.text
    text = answer.text.rstrip("\ufffd")  # of these some will become one character
    held = max(map(len, stop), default=1) - 1
    return text[: max(0, len(text) - held)]
