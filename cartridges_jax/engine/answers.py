"""Answers as text, while they grow and when they are done: ends, stop texts, cut characters."""

import dataclasses
from collections.abc import Sequence

from cartridges_jax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer. `finish_reason` is "stop" (the model ended its turn) or "length"."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str


def read_answer(
    tokenizer: Tokenizer,
    ids: list[int],
    logprobs: list[float],
    *,
    stop_ids: tuple[int, ...],
    stop: Sequence[str],
    max_new_tokens: int,
) -> Generation:
    """Reads an answer from its tokens so far, cut at a stop text.

    One that is not at its end has the finish_reason "".
    """
    ended = bool(ids) and ids[-1] in stop_ids
    text = tokenizer.decode(ids[:-1] if ended else ids)
    at = min((text.find(s) for s in stop if s in text), default=-1)
    if at >= 0:
        # The tokens that it took to write the stop text, and none after it.
        lengths = range(len(ids) + 1)
        enough = next(n for n in lengths if any(s in tokenizer.decode(ids[:n]) for s in stop))
        return Generation(text[:at], ids[:enough], logprobs[:enough], "stop")
    reason = "stop" if ended else "length" if len(ids) >= max_new_tokens else ""
    return Generation(text, ids, logprobs, reason)


def settled(answer: Generation, stop: Sequence[str]) -> str:
    """The part of a growing text that will not change: no cut character, no half of a stop text."""
    if answer.finish_reason:
        return answer.text
    text = answer.text.rstrip("\ufffd")  # of these some will become one character
    held = max(map(len, stop), default=1) - 1
    return text[: max(0, len(text) - held)]
