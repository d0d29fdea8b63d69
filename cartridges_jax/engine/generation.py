"""Prompts as token ids in, answers as text out: batches, growing answers, settings."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from cartridges_jax.engine.answers import Generation, read_answer
from cartridges_jax.engine.decoding import Decoding
from cartridges_jax.engine.sampling import Sampling
from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.transformer import Prefix, Transformer

STREAM_TOKENS = 8  # tokens that appear at a time


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How answers are made.

    `stop` are texts that end an answer and are not part of it; `stop_ids` tokens that end one.
    """

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]

    def check(self) -> None:
        """Raises InputError for settings that cannot be used."""
        temperature, top_k, top_p = self.sampling
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be above 0, got {self.max_new_tokens}")
        if not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
            raise InputError(
                f"{temperature=} and {top_k=} must be numbers of at least 0, {top_p=} above 0 and "
                "at most 1"
            )
        if not all(self.stop):
            raise InputError(f"stop must be a list of texts, none empty, got {list(self.stop)}")


def grow(
    transformer: Transformer,
    tokenizer: Tokenizer,
    mesh: Mesh,
    prompts: Sequence[Sequence[int]],
    prefix: Prefix | None,
    config: GenerationConfig,
    seeds: Sequence[int],
    piece: int | None = None,
) -> Iterator[list[Generation]]:
    """Yields the answers of one batch as they grow, after every `piece` tokens; None: at the end.

    An answer that is not at its end has the finish_reason "".

    Raises:
      InputError: if a prompt is empty, or does not fit the model's window with its answer.
    """
    if not all(map(len, prompts)):
        raise InputError("a prompt to generate from is empty")
    start = 0 if prefix is None else int(prefix.next_position)
    longest = start + max(map(len, prompts)) + config.max_new_tokens
    if longest > transformer.config.window:
        raise InputError(
            f"context, prompt and {config.max_new_tokens} new tokens need {longest} positions, the "
            f"model's window is {transformer.config.window}"
        )
    run = Decoding(
        transformer,
        prompts,
        prefix=prefix,
        max_new_tokens=config.max_new_tokens,
        sampling=config.sampling,
        seeds=seeds,
        stop_ids=config.stop_ids,
        mesh=mesh,
    )
    read = functools.partial(
        read_answer,
        tokenizer,
        stop_ids=config.stop_ids,
        stop=config.stop,
        max_new_tokens=config.max_new_tokens,
    )
    done: dict[int, Generation] = {}
    while len(done) < len(prompts):
        run.advance(piece)
        answers = []
        for i, (ids, logprobs) in enumerate(run.rows()):
            answer = done.get(i) or read(ids, logprobs)
            if answer.finish_reason:
                done[i] = answer
            answers.append(answer)
        run.stop(list(done))
        yield answers


def batches(count: int, most: int) -> Iterator[slice]:
    """Cuts `count` prompts into the fewest batches of at most `most`, of equal size.

    So that few programs are compiled.
    """
    size = -(-count // max(1, -(-count // most))) if count else 1
    for start in range(0, count, size):
        yield slice(start, start + size)
