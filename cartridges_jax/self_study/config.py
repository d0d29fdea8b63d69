"""The settings of self-study."""

import dataclasses

from cartridges_jax.config import setting
from cartridges_jax.self_study.seeds import MOST_EXAMPLES


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """Settings of self-study. The paper uses 65,536 conversations, temperature 0.6 and chunks of
    512 to 4096 tokens (arXiv 2506.06266).
    """

    preset: str = setting(
        "", "The set of values by model size that these settings began from: laptop or paper."
    )
    num_conversations: int = setting(1024, "Conversations to write, in all.", above=0)
    conversations_per_chunk: int = setting(
        64, "Requests that are written about one chunk, one unit of work.", above=0
    )
    chunk_min_tokens: int = setting(
        512,
        "Shortest width that is drawn, tokens; a chunk at an edge is cut shorter. 0: the longest.",
        at_least=0,
    )
    chunk_max_tokens: int = setting(
        2048,
        "Longest width that is drawn, tokens; a shorter document is shown whole. 0: all that the "
        "model's window leaves beside question and answer.",
        at_least=0,
    )
    question_share: float = setting(
        0.6,
        "Share of plain questions, 0 to 1; the other four families of requests are equal.",
        at_least=0,
        at_most=1,
    )
    passages: bool = setting(
        True, "Show bot A a sentence of the chunk to ask about, so that all of it is asked about."
    )
    num_examples: int = setting(
        0,
        f"Requests about other texts that bot A sees first, up to {MOST_EXAMPLES}; small models "
        "need them.",
        at_least=0,
        at_most=MOST_EXAMPLES,
    )
    question_temperature: float = setting(
        0.6, "Sampling temperature of bot A, who asks.", at_least=0
    )
    answer_temperature: float = setting(
        0.0, "Sampling temperature of bot B, who answers; 0 is greedy.", at_least=0
    )
    question_max_tokens: int = setting(
        128, "Longest request, tokens; longer ones are dropped.", above=0
    )
    answer_max_tokens: int = setting(
        256, "Longest answer, tokens; longer ones are dropped, or cut by keep_unfinished.", above=0
    )
    answer_max_sentences: int = setting(
        0,
        "Cut an answer behind so many sentences; 0: nowhere. A small model says what it knows in "
        "the first one and rambles on.",
        at_least=0,
    )
    keep_unfinished: bool = setting(
        False,
        "Keep what an answer has within its tokens. What the teacher would say next is learned at "
        "the cut too, so nothing learns to stop there; but not with --labels=tokens.",
    )
    min_answer_confidence: float = setting(
        0.0,
        "Drop a conversation if the geometric mean of the probabilities of its answer's tokens is "
        "below this, 0 to 1.",
        at_least=0,
        at_most=1,
    )
    seed: int = setting(0, "Seed of chunks, requests and sampling.", at_least=0)
