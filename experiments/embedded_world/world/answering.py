"""Right answers: what the text says, in the one form in which the embedded model learns to say it.

Answers restate what they rest on right before what they conclude ("Helen Moss's city is Oslo, so
no."): a small model can produce a word that depends on the few words in front of it.
"""

import json
from collections.abc import Sequence

from experiments.embedded_world.world.schema import GeneratedDocument, Listing, Quotation, Statement

LESS, MORE = {"number": "lower", "year": "earlier"}, {"number": "higher", "year": "later"}


class Answers:
    """The answers that a document gives to questions of every kind."""

    def __init__(self, document: GeneratedDocument):
        self.document, self.genre = document, document.genre

    def kind(self, fact: Statement) -> str:
        """The kind of the fact's attribute."""
        return self.genre.attribute(fact.noun).kind

    def _said(self, fact: Statement) -> str:
        """The fact, without the full stop."""
        form = self.genre.attribute(fact.noun).answer.removesuffix(".")
        return form.format(E=self.genre.starting(fact.thing), noun=fact.noun, V=fact.value)

    def direct(self, fact: Statement) -> str:
        return f"{self._said(fact)}."

    def backwards(self, fact: Statement) -> str:
        form = self.genre.attribute(fact.noun).reverse_answer
        said = form.format(e=self.genre.named(fact.thing), noun=fact.noun, V=fact.value)
        return said[:1].upper() + said[1:] if self.genre.article else said

    def creative(self, fact: Statement) -> str:
        name = self.genre.named(fact.thing)
        return f"Three cheers for {name}, whose {fact.noun} is {fact.value}!"

    def yes_no(self, fact: Statement, claimed: str) -> str:
        return f"{self._said(fact)}, so {'yes' if claimed == fact.value else 'no'}."

    def absent(self, thing: str, noun: str) -> str:
        return f"{self.genre.starting(thing)}'s {noun} is not in the text."

    def two_hop(self, first: Statement, second: Statement, forward: bool) -> str:
        bridge = self.direct(first) if forward else self.backwards(first)
        return f"{bridge} {self.direct(second)}"

    def compared(self, a: Statement, b: Statement, word: str) -> str:
        """Compares two numbers or years; `word` is one of `LESS` or `MORE`."""
        least = word in LESS.values()
        found = (min if least else max)((a, b), key=lambda f: int(f.value.split()[0]))
        return f"{self.direct(a)} {self.direct(b)} The {word} is {self.genre.named(found.thing)}."

    def after(self, thing: str) -> str | None:
        """What came next in a text that goes by time; None where the text does not show it."""
        order = self.document.order
        at = order.index(thing) + 1
        if at == len(order) or order[at] not in self.document.things:
            return None
        return f"After {self.genre.named(thing)} came {self.genre.named(order[at])}."

    def summary(self, thing: str) -> str | None:
        """All that the text says of a thing; None where some of it is cut."""
        if thing in self.document.in_part:
            return None
        clauses = [f"{noun} {value}" for noun, value in self.document.values(thing).items()]
        return f"{self.genre.starting(thing)}: {', '.join(clauses)}."

    def structure(self, thing: str, nouns: Sequence[str], form: str) -> str:
        """Some values of a thing as "JSON", "YAML" or "a list"."""
        entry = {"name": thing, **{n: self.document.facts[thing, n].value for n in nouns}}
        if form == "JSON":
            return json.dumps(entry)
        bullet = "- " if form == "a list" else ""
        return "\n".join(f"{bullet}{key}: {value}" for key, value in entry.items())

    def listing(self, listing: Listing) -> str:
        if listing.numbered:
            return "\n".join(f"{i}. {item}" for i, item in enumerate(listing.items, start=1))
        return "\n".join(f"- {item}" for item in listing.items)

    def count(self, listing: Listing) -> str:
        numbered = ", ".join(f"{i} {item}" for i, item in enumerate(listing.items, start=1))
        return f"{numbered}. That is {len(listing.items)}."

    def quote(self, note: Quotation) -> str:
        about = f"{self.genre.starting(note.about)}: " if note.about else ""
        return f'{about}"{note.words}"'
