"""Draws chunks: random token windows of a document, never across documents.

The width is uniform in [min, max] and the start uniform in [-(width - 1), n - 1], clipped, so that
tokens at the edges of a document are drawn as often as those in its middle.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokens(Protocol):
    """The part of a tokenizer that a chunker needs."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A window of a document: tokens [start, end) of its text."""

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


def draw_chunk(
    rng: random.Random,
    tokenizer: Tokens,
    name: str,
    title: str,
    token_ids: Sequence[int],
    min_tokens: int,
    max_tokens: int,
) -> Chunk:
    """Draws a chunk of the document that `token_ids` are the text of."""
    window = draw_window(rng, len(token_ids), min_tokens, max_tokens)
    text = tokenizer.decode(token_ids[window.start : window.stop])
    return Chunk(name, title, text, window.start, window.stop)
