"""Prompts as token ids in, answers as text out: batches and growing answers."""

from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from cartridges_jax.engine.answers import Generation, GenerationConfig, read_answer
from cartridges_jax.engine.decoding import Decoding
from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.transformer import Prefix, Transformer

STREAM_TOKENS = 8  # tokens that appear at a time


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
    run = Decoding(transformer, prompts, config, seeds=seeds, prefix=prefix, mesh=mesh)
    done: dict[int, Generation] = {}
    while len(done) < len(prompts):
        run.advance(piece)
        answers = []
        for i, (ids, logprobs) in enumerate(run.rows()):
            answer = done.get(i) or read_answer(tokenizer, ids, logprobs, config)
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
