"""What self-study asks of a model: to read a chunk, and to reply to messages about it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from cartridges_jax.corpus import Chunk
from cartridges_jax.models.chat_template import Message


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a bot said. `confidence` is the geometric mean of the probabilities of its tokens.

    That is of the tokens that were made: a few more than `enough` had asked for.
    """

    text: str
    confidence: float
    finished: bool = True  # within the tokens that it was given, or `enough` ended it
    token_ids: Sequence[int] | None = None  # of the text, where they are the tokens of our model


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
        enough: Callable[[str], bool] | None = None,
    ) -> list[Reply | None]:
        """Answers every request, in order. An answer may end once `enough` of its text is true.

        None where the chunk and the request leave no room for `max_new_tokens` in the window.
        """
        ...


@runtime_checkable
class Client(Protocol):
    """A model that can read chunks."""

    @property
    def fingerprint(self) -> dict[str, Any]: ...

    @property
    def opens_thoughts(self) -> bool: ...  # its replies begin inside of thoughts, without a mark

    @property
    def requests_at_once(self) -> int: ...  # that keep it busy; from several threads

    def close(self) -> None:
        """Ends what is being answered."""
        ...

    def read(self, chunk: Chunk, opening: Sequence[Message] = ()) -> ChunkReader:
        """Reads a chunk, and turns that every request then goes on from.

        The chunk's text may be empty: then the title is all it knows.
        """
        ...
