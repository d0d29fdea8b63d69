"""Seed prompts: what bot A is told so that its requests cover many uses of a text.

Five families as in the paper (arXiv 2506.06266, section 4.1): question, structuring,
summarization, use case and creative. Bot A reads the chunk as its context and a seed as the user's
message; what it replies becomes the first message of the conversation. Every family asks for a
question, also where a task is meant, so that one filter knows a request in every language that
marks its questions (`selection.py`; Thai, say, does not). A small model repeats what it is shown
rather than ask, unless it has seen how others asked: examples are turns before the seed, about
texts that have nothing to do with the corpus.
"""

import random
import re

from cartridges_jax.corpus.chunkers import SENTENCE_END
from cartridges_jax.models.chat_template import Message

QUESTION = "question"
SEEDS: dict[str, tuple[str, ...]] = {
    QUESTION: (
        "Write a question that {this} answers. Name whom or what it is about.",
        "Write a question that tests whether a reader remembers {this}. Name whom or what it is "
        "about.",
    ),
    "structuring": (
        "Write a question that asks for facts of {this} as a list, a table or JSON. Name whom or "
        "what they are about.",
    ),
    "summarization": (
        "Write a question that asks to sum up what is known about something in {this}. Name it.",
    ),
    "use_case": (
        "Write what somebody would ask who has to deal with {this}, at work or on a visit. Name "
        "whom or what it is about.",
    ),
    "creative": (
        "Write a question that asks for a rhyme, a slogan or a very short story about something in "
        "{this}. Name it.",
    ),
}
FAMILIES = tuple(SEEDS)
PASSAGE, DETAIL = "the following sentence", "a detail of the text"  # what `{this}` is
# Who uses these about a text that has none of them speaks of the seed.
SEED_WORDS = frozenset({"sentence", "sentences", "following", "question", "questions", "reader"})

EXAMPLE_PASSAGES = (
    "The Kestrel Library opens at ten and lends out each book for three weeks.",
    "Marta Quill repaired the clock tower in 1934 with the help of her brother.",
    "The bakery in Elm Lane sells rye bread, which costs 3 coins, and plum cake.",
    "Visitors of the Odell Zoo must leave their bags at the east gate.",
    "The Linden Orchestra rehearses every Friday in the old mill.",
)
MOST_EXAMPLES = len(EXAMPLE_PASSAGES)
EXAMPLES: dict[str, tuple[str, ...]] = {
    QUESTION: (
        "For how many weeks does the Kestrel Library lend out a book?",
        "Who repaired the clock tower in 1934?",
        "How much does the rye bread of the bakery in Elm Lane cost?",
        "Where must visitors of the Odell Zoo leave their bags?",
        "On which day does the Linden Orchestra rehearse?",
    ),
    "structuring": (
        "Can you list the opening hour and the lending period of the Kestrel Library as JSON?",
        "Can you put who repaired the clock tower, and when, into a table?",
        "Can you list what the bakery in Elm Lane sells, one item a line?",
        "Can you give the rule for bags at the Odell Zoo as YAML?",
        "Can you write the day and the place of the Linden Orchestra's rehearsals as a list?",
    ),
    "summarization": (
        "Can you sum up how lending works at the Kestrel Library?",
        "Can you sum up how the clock tower was repaired?",
        "Can you sum up what the bakery in Elm Lane offers?",
        "What does a visitor need to know about bags at the Odell Zoo, in short?",
        "Can you sum up when and where the Linden Orchestra rehearses?",
    ),
    "use_case": (
        "I want to keep a book of the Kestrel Library for a month. Is that allowed?",
        "I am writing a plaque for the clock tower. Whose name belongs on it?",
        "I have 5 coins. Can I buy rye bread at the bakery in Elm Lane?",
        "I am visiting the Odell Zoo with a large bag. Where do I go first?",
        "I would like to hear the Linden Orchestra rehearse. When should I come to the old mill?",
    ),
    "creative": (
        "Can you write a two-line rhyme about the Kestrel Library's opening hour?",
        "Can you tell the repair of the clock tower as a very short story?",
        "Can you write a slogan for the rye bread of the bakery in Elm Lane?",
        "Can you write a funny sign about bags for the Odell Zoo?",
        "Can you write a short verse about the Linden Orchestra in the old mill?",
    ),
}

_SENTENCE = re.compile(rf"\S.*?(?:{SENTENCE_END}|$)", re.MULTILINE)
SHORTEST_PASSAGE = 12  # characters; shorter: numbers of a list and the like
# UTF-8 bytes of a passage and of the sentence that begins its paragraph. A byte may be a token.
LONGEST_PASSAGE, LONGEST_HEAD = 200, 100
FARTHEST_HEAD = 2000  # characters from the passage back to that sentence


def family_of_unit(index: int, question_share: float) -> str:
    """The family of a unit's requests: questions by their share, the others in turn."""
    before, after = (int(n * question_share + 1e-9) for n in (index, index + 1))
    if after > before:
        return QUESTION
    others = [family for family in FAMILIES if family != QUESTION]
    return others[(index - before) % len(others)]


def examples(family: str, count: int) -> list[Message]:
    """Turns that show how others asked: a seed about another text, and a request."""
    turns = []
    for passage, request in zip(EXAMPLE_PASSAGES[:count], EXAMPLES[family], strict=False):
        turns.append(Message(role="user", content=seed_prompt(SEEDS[family][0], passage)))
        turns.append(Message(role="assistant", content=request))
    return turns


def seed_prompt(seed: str, passage: str | None) -> str:
    """What bot A is told: a seed, about a passage or about the whole text."""
    if passage is None:
        return seed.format(this=DETAIL)
    return f"{seed.format(this=PASSAGE)}\n\n{passage}"


def draw_seed_prompts(
    rng: random.Random, family: str, count: int, text: str | None, num_examples: int
) -> list[str]:
    """Draws `count` seed prompts of a family.

    Args:
      rng: source of every choice.
      family: of all of them.
      count: how many.
      text: whose passages are shown, each as often as any other; None to show none.
      num_examples: behind examples, the wording is theirs.
    """
    wordings = SEEDS[family][:1] if num_examples else SEEDS[family]
    if text is None:
        return [seed_prompt(rng.choice(wordings), None) for _ in range(count)]
    spans = sentences(text)
    drawn: list[tuple[int, int]] = []
    while len(drawn) < count:
        drawn += rng.sample(spans, min(len(spans), count - len(drawn)))
    return [seed_prompt(rng.choice(wordings), shown_passage(text, *span)) for span in drawn]


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences and lines of a text begin and end."""
    spans = [match.span() for match in _SENTENCE.finditer(text)]
    return [(a, b) for a, b in spans if b - a >= SHORTEST_PASSAGE] or spans or [(0, 0)]


def shown_passage(text: str, start: int, end: int) -> str:
    """A sentence or line as bot A is shown it; a line under the first one of its paragraph.

    What a line of a function, a row of a table or an item of a list is about stands there, if the
    paragraph begins near. Both are cut if they are long.
    """
    passage = _cut(text[start:end], LONGEST_PASSAGE)
    if re.search(rf"{SENTENCE_END}$", passage):
        return passage
    blank = text.rfind("\n\n", max(0, start - FARTHEST_HEAD), start)
    if blank < 0 and start > FARTHEST_HEAD:
        return passage
    found = _SENTENCE.finditer(text, blank + 2 if blank >= 0 else 0)
    head = next((m for m in found if len(m[0]) >= SHORTEST_PASSAGE or m.start() >= start), None)
    if head is None or head.start() >= start:
        return passage
    return f"{_cut(head[0], LONGEST_HEAD)}\n{passage}"


def _cut(text: str, num_bytes: int) -> str:
    """As much of a text's beginning as fits, in whole characters."""
    return text[:num_bytes].encode()[:num_bytes].decode(errors="ignore")
