"""Which of bot A's messages are kept: requests, not copies, nothing of what bot A was told.

The rules know no language, but ask of it that it marks its questions: they look at a message's last
sign, at the characters that it shares with the chunk, and at words that it can only have from its
prompt.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Sequence

from cartridges_jax.corpus import Chunk

# Of all scripts that have one: Latin, full width, Arabic, Greek, Ethiopic, Armenian and others.
QUESTION_MARKS = "?\uff1f\u061f\u037e\u1367\u055e\u2047\u2048\u2049\u203d\ua60f"
_CLOSING = " \n\t\"'\u201d\u2019\u00bb)]*_."
COPIED = 0.95  # of a message's characters in one piece of the chunk: a sign behind it asks nothing
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<!^)\b(?:[^\W\d_a-z]\w+|\d+)")  # not the first word of a text


@dataclasses.dataclass(frozen=True)
class Selection:
    """The filter of one unit.

    `foreign` are words that a request can only have from its prompt.
    """

    chunk: str
    foreign: frozenset[str]

    @classmethod
    def of(cls, chunk: Chunk, told: Collection[str], examples: Sequence[str]) -> "Selection":
        """Makes the filter.

        Args:
          chunk: what the requests are about; what it says is never foreign.
          told: words that give a prompt away.
          examples: other texts that bot A was shown; their names and numbers are foreign.
        """
        text = f"{chunk.title}\n{chunk.text}"
        names = {name.casefold() for example in examples for name in _NAME.findall(example)}
        return cls(_plain(text), frozenset((names | set(told)) - words(text)))

    def why_not(self, message: str) -> str | None:
        """Why a message is dropped; None if it is kept."""
        if not message.rstrip(_CLOSING).endswith(tuple(QUESTION_MARKS)):
            return "no request"
        if words(message) & self.foreign:
            return "speaks of the prompt"
        plain = _plain(message).rstrip(_CLOSING + QUESTION_MARKS)
        match = difflib.SequenceMatcher(None, plain, self.chunk, autojunk=False)
        if match.find_longest_match().size >= COPIED * len(plain):
            return "copy"
        return None


def words(text: str) -> set[str]:
    """The words of a text, whatever their case."""
    return {word.casefold() for word in _WORD.findall(text)}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
