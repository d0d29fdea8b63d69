"""What bot A is shown and should write: seed prompts of self-study with a fitting first message."""

import dataclasses
import random

from experiments.embedded_world.prompts import (
    FAMILIES,
    SEED_PROMPTS,
    draw_focus,
    focused_prompt,
)
from experiments.embedded_world.world.asking import KINDS_OF_FAMILY, Turn, draw_quote, draw_turn
from experiments.embedded_world.world.schema import GeneratedDocument, Span, Statement

GENERAL_SHARE = 0.12  # of the seeds show no sentence
QUOTE_SHARE = 0.4  # of the questions about a sentence that states nothing


def draw_seed_turn(rng: random.Random, document: GeneratedDocument) -> Turn | None:
    """Draws a seed prompt as the question and a message about its sentence as the answer.

    The message is about the fact that the sentence states, or the nearest one of the same section;
    or about the list that is there, or the sentence itself.
    """
    if not document.statements:
        return None
    if document.split == "noisy":  # what the model learns to write is plain
        document = dataclasses.replace(document, split="train")
    family = rng.choice(FAMILIES)
    if rng.random() < GENERAL_SHARE:
        about = rng.choice(list(document.facts.values()))
        message = _message(rng, document, family, about)
        prompt = rng.choice(SEED_PROMPTS[family])
    else:
        start, end = draw_focus(rng, document.text)
        message = _about(rng, document, family, start, end)
        prompt = focused_prompt(rng, family, document.text[start:end])
    return message and Turn("ask", prompt, message.question, message.facts)


def _distance(span: Span, start: int, end: int) -> int:
    return max(0, span.start - end, start - span.end)


def _about(
    rng: random.Random, document: GeneratedDocument, family: str, start: int, end: int
) -> Turn | None:
    """A message about the characters [start, end) of the text."""
    here = [s for s in document.statements if _distance(s.span, start, end) == 0]
    lists = tuple(x for x in document.listings if _distance(x.span, start, end) == 0)
    if lists and not here and family in ("structuring", "question"):
        shown = dataclasses.replace(document, listings=lists)
        return draw_turn(rng, shown, "listing" if family == "structuring" else "count") or (
            draw_turn(rng, shown, "listing")
        )
    said = [n for n in document.quotations if _distance(n.span, start, end) == 0]
    if said and not here and family == "question" and rng.random() < QUOTE_SHARE:
        quote = draw_quote(rng, document, rng.choice(said))
        if quote is not None:
            return quote
    section = [t for t, s in document.sections if s.start <= start < s.end]
    near = here or [s for s in document.statements if s.thing in section]
    if not near:
        near = list(document.statements)
    least = min(_distance(s.span, start, end) for s in near)
    stated = rng.choice([s for s in near if _distance(s.span, start, end) == least])
    return _message(rng, document, family, document.facts[stated.thing, stated.noun])


def _message(
    rng: random.Random, document: GeneratedDocument, family: str, about: Statement
) -> Turn | None:
    """A message of a family about one fact."""
    turn = draw_turn(rng, document, rng.choice(KINDS_OF_FAMILY[family]), about)
    if turn is None or (about.thing, about.noun) not in turn.facts:
        turn = draw_turn(rng, document, "direct", about)
    return turn
