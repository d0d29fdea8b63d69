"""What is asked of the engine, and the answers while they are made."""

import dataclasses
from collections.abc import Sequence

from cartridges_jax.engine.answers import Generation, GenerationConfig, read_answer
from cartridges_jax.engine.pages import Span
from cartridges_jax.engine.scheduler import Row
from cartridges_jax.models.tokenizer import Tokenizer


class Context:
    """Spans that requests follow, on pages as long as there is room.

    It may lose them while nothing follows it, and gets them back by itself.
    """

    def __init__(self, spans: Sequence[Span], behind: "Context | None" = None):
        self.spans = tuple(spans)
        self._behind = behind  # is in use as long as this one is

    @property
    def num_slots(self) -> int:
        return sum(span.length for span in self.spans)

    @property
    def next_position(self) -> int:
        """Rope position of the first token behind it."""
        return sum(span.positions for span in self.spans)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of the engine.

    `token_ids` follow the context; `seed` is of sampling, from 0 to 2**31 - 1.
    """

    token_ids: Sequence[int]
    config: GenerationConfig
    seed: int = 0
    context: Context | None = None


class Answer:
    """An answer that is being made, and at its end what it is."""

    def __init__(self, row: Row, group: int):
        self.row, self.group = row, group
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top_logprobs: list[dict[int, float]] = []
        self.generation: Generation | None = None  # once it is over

    @property
    def request(self) -> Request:
        return self.row.request


@dataclasses.dataclass
class Counts:
    """What the engine has done: tokens and rows of steps, with and without what rounds them up."""

    read_tokens: int = 0
    read_room: int = 0
    decoded_rows: int = 0
    decoded_room: int = 0
    most_rows: int = 0  # decoded in one step
    steps: int = 0
    dropped_rows: int = 0  # for want of pages


def so_far(tokenizer: Tokenizer, answer: Answer) -> Generation:
    """An answer as it is now; one that is not at its end has the finish_reason ""."""
    found = read_answer(
        tokenizer, list(answer.token_ids), list(answer.logprobs), answer.request.config,
        list(answer.top_logprobs),
    )  # fmt: skip
    return dataclasses.replace(
        found,
        prompt_logprobs=list(answer.prompt_logprobs),
        prompt_top_logprobs=list(answer.prompt_top_logprobs),
    )
