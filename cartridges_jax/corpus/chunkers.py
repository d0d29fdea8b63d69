"""Draws chunks: random token windows of a document, never across documents.

The width is uniform in [min, max] and the start uniform in [-(width - 1), n - 1], clipped, so that
tokens at the edges of a document are drawn as often as those in its middle. A window that begins or
ends inside a line is cut back to whole lines, or to whole sentences where no line ends near: who
reads half a passage asks about what is in the other half.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cartridges_jax.errors import InputError

TRIES = 10_000  # windows that are drawn until one shows text
BYTES_OF_CHARACTER = 4  # at most, each of which may be a token
NO_CHARACTER = "\ufffd"  # what a decoder makes of bytes that are none
LONGEST_CUT = 0.4  # of a window's characters, at either end
SENTENCE_END = r"(?:[.!?][\"')\]]*(?=\s|$)|[\u3002\uff01\uff1f\u0964])"  # Chinese, Hindi
_BREAKS = (re.compile(r"\n"), re.compile(rf"{SENTENCE_END}\s"))  # the stronger first


@runtime_checkable
class Tokens(Protocol):
    """The part of a tokenizer that a chunker needs."""

    def encode(self, text: str, *, after: Any = "nothing") -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A passage of a document: whole lines or sentences of the tokens [start, end) of its text."""

    document: str
    title: str
    text: str
    start: int
    end: int


def draw_window(rng: random.Random, length: int, min_tokens: int, max_tokens: int) -> range:
    """Draws a window of a document of `length` tokens; one shorter than the width is whole."""
    width = rng.randint(min_tokens, max_tokens)
    if length <= width:
        return range(length)
    start = rng.randint(-(width - 1), length - 1)
    return range(max(start, 0), min(start + width, length))


def whole_passages(text: str, begins_inside: bool, ends_inside: bool) -> str:
    """Cuts the half line or sentence off a text's ends, if it breaks within `LONGEST_CUT` of them.

    Args:
      text: what a window shows.
      begins_inside: whether there is more text before it.
      ends_inside: whether there is more text after it.
    """
    reach = int(LONGEST_CUT * len(text))
    start, end = 0, len(text)
    if begins_inside:
        found = (pattern.search(text, 0, reach) for pattern in _BREAKS)
        start = next((match.end() for match in found if match), start)
    if ends_inside:
        found = (list(pattern.finditer(text, len(text) - reach)) for pattern in _BREAKS)
        end = next((matches[-1].end() for matches in found if matches), end)
    return text[start:end].strip()


def _whole_characters(
    tokenizer: Tokens, token_ids: Sequence[int] | np.ndarray, window: range
) -> str:
    """What a window shows, without the tokens at its ends that are only part of a character.

    Decoders turn more than the cut character into `NO_CHARACTER`, some all bytes beside it.
    """
    from_start = range(BYTES_OF_CHARACTER if window.start > 0 else 1)
    from_end = range(BYTES_OF_CHARACTER if window.stop < len(token_ids) else 1)
    texts = []
    for first, last in sorted(itertools.product(from_start, from_end), key=sum):
        ids = np.asarray(token_ids[window.start + first : window.stop - last])
        texts.append(tokenizer.decode(ids.tolist()))
        if NO_CHARACTER not in texts[-1]:
            return texts[-1]
    return min(texts, key=lambda text: text.count(NO_CHARACTER))  # the document has some itself


def draw_chunk(
    rng: random.Random,
    tokenizer: Tokens,
    name: str,
    title: str,
    token_ids: Sequence[int] | np.ndarray,
    min_tokens: int,
    max_tokens: int,
) -> Chunk:
    """Draws a chunk of the document that `token_ids` are the text of, anew where it is blank.

    Raises:
      InputError: if the document is blank nearly everywhere.
    """
    for _ in range(TRIES):
        window = draw_window(rng, len(token_ids), min_tokens, max_tokens)
        text = _whole_characters(tokenizer, token_ids, window)
        text = whole_passages(text, window.start > 0, window.stop < len(token_ids))
        if text:
            return Chunk(name, title, text, window.start, window.stop)
    raise InputError(
        f"{name} is blank in {TRIES:,} places of {min_tokens} to {max_tokens} tokens; "
        "remove the blanks, or raise chunk_min_tokens"
    )
