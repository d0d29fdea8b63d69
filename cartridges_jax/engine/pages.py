"""The pages of a pool, and the spans of slots that are kept on them for all rows that follow.

Plain bookkeeping, which knows nothing of devices. A page holds the keys and values of `size` slots
in every layer; a span or a row has a list of pages, of which only the last one may be partly live.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

PAGE = 128  # slots: the lanes of a TPU, and eight of vLLM's blocks
_serials = itertools.count()


class Pages:
    """The free pages of a pool; page 0 is never given out: what only rounds a step up writes there.

    Taking and giving back cost time that grows with the number of pages moved alone.
    """

    def __init__(self, count: int, size: int = PAGE):
        if count < 2 or size < 1 or size & (size - 1):
            raise ValueError(f"{count} pages of {size} slots: not a pool")
        self.count, self.size = count, size
        self._free = list(range(count - 1, 0, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def usable(self) -> int:
        """The pages there are, page 0 not counted."""
        return self.count - 1

    def needed(self, slots: int) -> int:
        """Pages that so many slots take."""
        return -(-slots // self.size)

    def take(self, count: int) -> list[int]:
        """Takes free pages."""
        assert count <= len(self._free), "more pages are taken than are free"
        return [self._free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Makes pages free, and the list empty."""
        self._free += reversed(pages)
        pages.clear()


@dataclasses.dataclass(eq=False)
class Span:
    """Slots that many rows follow: a cartridge, a chunk of text, the earlier turns of a chat.

    They are read or loaded once, when a row that follows them is admitted, and are lost when pages
    are short and no row follows them; then the next row brings them back.
    """

    length: int  # slots
    positions: int  # rope positions that they take: of text, as many
    token_ids: Sequence[int] = ()  # whose KV it is; of slots that are loaded, none
    before: tuple["Span", ...] = ()  # what is read before its tokens
    source: Callable[[], Any] | None = None  # of slots that are loaded: gives them
    serial: int = dataclasses.field(default_factory=_serials.__next__)
    pages: list[int] = dataclasses.field(default_factory=list)  # none: it is not there
    read: int = 0  # slots that are on its pages, or will be when the steps so far are done
    followers: int = 0  # admitted rows that follow it
    is_kept: bool = True  # somebody may still ask for it
    last_used: int = 0

    @classmethod
    def of_tokens(cls, token_ids: Sequence[int], before: tuple["Span", ...] = ()) -> "Span":
        """Of text, to be read behind other spans."""
        return cls(len(token_ids), len(token_ids), token_ids, before)

    @property
    def to_read(self) -> int:
        """Tokens that are to be read before a row can follow it."""
        return max(len(self.token_ids) - self.read, 0)

    @property
    def path(self) -> tuple["Span", ...]:
        """What a row that follows it follows: what stands before it, and itself."""
        return (*self.before, self)
