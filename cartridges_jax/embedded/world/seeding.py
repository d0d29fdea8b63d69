"""What bot A is shown and should write: seed prompts of self-study with a fitting first message."""

import random

from cartridges_jax.embedded.world.asking import KINDS_OF_FAMILY, Turn, draw_turn
from cartridges_jax.embedded.world.schema import GeneratedDocument, Span
from cartridges_jax.self_study.prompts import FAMILIES, draw_focus, focused_prompt


def _distance(span: Span, start: int, end: int) -> int:
    return max(0, span.start - end, start - span.end)


def draw_seed_turn(rng: random.Random, document: GeneratedDocument) -> Turn | None:
    """Draws a seed prompt as the question and a message about its sentence as the answer.

    The message is about the fact that the sentence states, or the nearest one; about the list or
    the quoted words, where the sentence holds such.
    """
    if not document.statements:
        return None
    family = rng.choice(FAMILIES)
    start, end = draw_focus(rng, document.text)
    facts = list(document.facts.values())
    nearest = min(_distance(f.span, start, end) for f in facts)
    about = rng.choice([f for f in facts if _distance(f.span, start, end) == nearest])
    kind = rng.choice(KINDS_OF_FAMILY[family])
    listed = [x for x in document.listings if _distance(x.span, start, end) == 0]
    if listed and nearest and family in ("structuring", "question"):
        kind = "listing" if family == "structuring" else rng.choice(("listing", "count"))
    shown = document.about_only(start, end) if kind in ("listing", "count", "quote") else document
    message = draw_turn(rng, shown, kind, about) or draw_turn(rng, document, "direct", about)
    if message is None:
        return None
    prompt = focused_prompt(rng, family, document.text[start:end])
    return Turn("ask", family, prompt, message.question, message.facts)
