"""Seed prompts: what bot A is told so that its first messages cover many uses of a text.

Five families as in the paper (arXiv 2506.06266, section 4.1): structuring, summarisation, question,
use case and creative. Bot A reads the chunk as its context and a seed as the user's message; what
it replies becomes the user's message of the conversation. The wording is short on purpose: the
embedded model has learned these very sentences, and a large model needs no more.
"""

import random

SEED_PROMPTS: dict[str, tuple[str, ...]] = {
    "structuring": (
        "Write one message that asks for some of this information as JSON. Name what it is about.",
        "Write one message that asks for facts from the text as YAML. Name what they are about.",
        "Ask, in one message, for part of the text to be put into a list. Be specific.",
    ),
    "summarization": (
        "Write one message that asks for a summary of one part of the text. Name the part.",
        "Ask, in one message, to summarise what the text says about one thing in it. Name it.",
    ),
    "question": (
        "Write one question that tests knowledge of a detail in the text. Name who or what.",
        "Ask one question about a specific fact in the text. It must be clear without the text.",
        "Write a question that can be answered only by somebody who has read the text closely.",
        "Ask something that needs two facts of the text, or a comparison of two. Name them.",
    ),
    "use_case": (
        "Think of a person who uses this text at work. Write the message this person would send.",
        "Write one practical request that somebody with a task to do would ask about the text.",
    ),
    "creative": (
        "Write one message with a playful or creative task about something in the text. Name it.",
        "Ask for a short creative piece that uses the facts of the text. Name whom it is about.",
    ),
}
FAMILIES = tuple(SEED_PROMPTS)


def draw_seed_prompts(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Draws `count` (family, prompt) pairs, families in turn from a random start."""
    first = rng.randrange(len(FAMILIES))
    families = [FAMILIES[(first + i) % len(FAMILIES)] for i in range(count)]
    return [(family, rng.choice(SEED_PROMPTS[family])) for family in families]
