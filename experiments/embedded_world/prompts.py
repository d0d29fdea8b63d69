"""Seed prompts: what bot A is told so that its first messages cover many uses of a text.

Five families as in the paper (arXiv 2506.06266, section 4.1): structuring, summarisation, question,
use case and creative. Bot A reads the chunk as its context and a seed as the user's message; what
it replies becomes the user's message of the conversation. The wording is short on purpose: the
embedded model has learned these very sentences, and a large model needs no more.
"""

import random
import re

from cartridges_jax.corpus.chunkers import SENTENCE_END

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
QUESTION = "question"  # the family of plain questions
# Not families of seeds:
SKIMMED = "skimmed"  # plain questions by who has seen a few sentences
RECALL = "recall"  # a sentence is asked for word for word; nobody has to think of that
RECALL_PROMPTS = (
    'Please quote the sentence that begins with "{beginning}".',
    'Find the sentence that begins with "{beginning}" and quote it.',
    'Copy the sentence that begins with "{beginning}".',
)
BEGINNING_WORDS, LONGEST_BEGINNING = 3, 60  # by which a sentence is asked for; characters

# Prompts that show bot A the very sentence to ask about: its questions then cover the text evenly
# and name what is there, which small models do not manage alone.
FOCUSED_PROMPTS: dict[str, tuple[str, ...]] = {
    "structuring": (
        "Write one message that asks for something of this as JSON, YAML or a list. Name it.",
        "Ask, in one message, for a list or a form with facts from here. Be specific.",
    ),
    "summarization": (
        "Write one message that asks for a summary of what the text says about this. Name it.",
        "Ask, in one message, to sum up the text on what is named here.",
    ),
    "question": (
        "Write one question that tests knowledge of this detail. Name who or what.",
        "Ask one question about this part of the text. It must be clear without the text.",
        "Write a question that only somebody can answer who has read this closely.",
        "Ask something that needs this, alone or with another fact of the text.",
    ),
    "use_case": (
        "Think of a person who needs this at work. Write the message this person would send.",
        "Write one practical request that this part of the text can answer.",
    ),
    "creative": (
        "Write one message with a playful or creative task about this. Name what it is about.",
        "Ask for a short creative piece that uses this. Name whom or what it is about.",
    ),
}
PROMPTS = {"general": SEED_PROMPTS, "focused": FOCUSED_PROMPTS}
_SENTENCE = re.compile(rf"\S.*?(?:{SENTENCE_END}|$)", re.MULTILINE)
SHORTEST_FOCUS, LONGEST_FOCUS = 12, 200  # characters; shorter: numbers of a list and the like
# Characters of the sentence that begins a focus's paragraph, and from the focus back to it.
LONGEST_HEAD, FARTHEST_HEAD = 100, 2000


def _sentences(text: str) -> list[tuple[int, int]]:
    """Where sentences and lines begin and end."""
    spans = [match.span() for match in _SENTENCE.finditer(text)]
    return [(a, b) for a, b in spans if b - a >= SHORTEST_FOCUS] or spans or [(0, 0)]


def draw_focus(rng: random.Random, text: str) -> tuple[int, int]:
    """Draws one sentence or line of a text, each as likely as its length.

    Returns:
      Where it begins and ends; long ones are cut.
    """
    spans = _sentences(text)
    start, end = rng.choices(spans, [b - a + 1 for a, b in spans])[0]
    return start, min(end, start + LONGEST_FOCUS)


def shown_focus(text: str, start: int, end: int) -> str:
    """A sentence or line of a text as bot A is shown it: under the first one of its paragraph.

    What a line of a function, a row of a table or an item of a list is about stands there, if the
    paragraph begins near. Both are cut if they are long.
    """
    focus = text[start : min(end, start + LONGEST_FOCUS)]
    blank = text.rfind("\n\n", max(0, start - FARTHEST_HEAD), start)
    if blank < 0 and start > FARTHEST_HEAD:
        return focus
    sentences = _SENTENCE.finditer(text, blank + 2 if blank >= 0 else 0)
    head = next((m for m in sentences if len(m[0]) >= SHORTEST_FOCUS or m.start() >= start), None)
    if head is None or head.start() >= start:
        return focus
    return f"{head[0][:LONGEST_HEAD]}\n{focus}"


def all_focuses(text: str) -> list[str]:
    """All that bot A may be shown of a text."""
    return [shown_focus(text, start, end) for start, end in _sentences(text)]


def skim(rng: random.Random, text: str, count: int) -> str:
    """Draws up to `count` sentences of a text, in its order: all that who skims it has seen."""
    spans = _sentences(text)
    return "\n".join(text[a:b] for a, b in sorted(rng.sample(spans, min(count, len(spans)))))


def draw_recall(rng: random.Random, text: str, count: int, whole: str) -> list[tuple[str, str]]:
    """Draws up to `count` sentences of a text that can be asked for by their first words.

    Of a sentence that ends with a quotation it is what stands behind its first quotation mark.

    Args:
      rng: source of every choice.
      text: a part of a document.
      count: how many.
      whole: the document's text, or the corpus: in it no two sentences may begin alike.

    Returns:
      The message that asks, and what must be in the answer word for word.
    """
    spans = _sentences(text)
    drawn = []
    for start, end in rng.sample(spans, len(spans)):
        said = text[start:end]
        if said.endswith('"'):
            said = said[said.index('"') + 1 :]
        words = said.split()
        beginning = " ".join(words[:BEGINNING_WORDS]).strip("\"'.,:;!?-*|# ")
        fits = 0 < len(beginning) <= LONGEST_BEGINNING and len(words) > BEGINNING_WORDS
        if fits and '"' not in beginning and whole.count(beginning) == 1:
            drawn.append((rng.choice(RECALL_PROMPTS).format(beginning=beginning), said))
    return drawn[:count]


def focused_prompt(rng: random.Random, family: str, focus: str) -> str:
    """A seed prompt of a family about a sentence of the text."""
    return f"{rng.choice(FOCUSED_PROMPTS[family])}\n\n{focus}"


def draw_seed_prompts(
    rng: random.Random, count: int, question_share: float = 0.2, text: str | None = None
) -> list[tuple[str, str]]:
    """Draws `count` (family, prompt) pairs.

    Args:
      rng: source of every choice.
      count: how many.
      question_share: of family "question"; the others come in turn from a random start.
      text: what each prompt shows a sentence of; None for the general prompts.
    """
    others = [family for family in FAMILIES if family != QUESTION]
    first, questions = rng.randrange(len(others)), round(question_share * count)
    families = [QUESTION] * questions
    families += [others[(first + i) % len(others)] for i in range(count - questions)]
    if text is None:
        return [(family, rng.choice(SEED_PROMPTS[family])) for family in families]
    spans = [draw_focus(rng, text) for _ in families]
    return [
        (family, focused_prompt(rng, family, shown_focus(text, start, end)))
        for family, (start, end) in zip(families, spans, strict=True)
    ]
