"""Reads a question that somebody else wrote, and answers it from the ground truth.

For judging the model's own questions: which of them name something in the text and can be answered
from it. Every wording the world knows is a pattern; a question that fits none is not understood.
"""

import functools
import re
from collections.abc import Iterator, Sequence

from experiments.embedded_world.world import asking, wordings
from experiments.embedded_world.world.answering import LESS, MORE, Answers
from experiments.embedded_world.world.asking import Turn
from experiments.embedded_world.world.schema import GeneratedDocument, Statement


@functools.cache
def _pattern(wording: str, nouns: tuple[str, ...]) -> re.Pattern[str]:
    """What a wording matches; names of facts are of several words, so they are listed."""
    listed = {"noun": nouns, "second": nouns, "more": (*LESS.values(), *MORE.values())}
    source = ""
    for i, part in enumerate(re.split(r"\{(\w+)\}", wording)):
        inside = "|".join(map(re.escape, listed.get(part, ()))) or ".+"
        source += f"(?P<{part}>{inside})" if i % 2 else re.escape(part)
    return re.compile(source, re.DOTALL)


def understand(document: GeneratedDocument, question: str) -> Turn | None:
    """The question with the answer that the document gives.

    Returns:
      None where it is no question of this world, or the text does not answer it.
    """
    return next(iter(_Reader(document, question.strip()).readings()), None)


class _Reader:
    def __init__(self, document: GeneratedDocument, question: str):
        self.document, self.question = document, question
        self.genre, self.answers = document.genre, Answers(document)
        self.things = {self.genre.named(t): t for t in document.things}
        self.nouns = tuple(a.noun for a in self.genre.attributes)

    def _fits(self, *wordings: Sequence[str]) -> Iterator[dict[str, str]]:
        for wording in (w for group in wordings for w in group):
            wording = wording.replace("{thing}", self.genre.thing)
            if match := _pattern(wording, self.nouns).fullmatch(self.question):
                yield match.groupdict()

    def _fact(self, name: str, noun: str) -> Statement | None:
        return self.document.facts.get((self.things.get(name, ""), noun))

    def _by_value(self, noun: str, value: str) -> Statement | None:
        found = [f for f in self.document.facts.values() if (f.noun, f.value) == (noun, value)]
        return found[0] if len(found) == 1 else None

    def _turn(self, kind: str, answer: str, *facts: Statement) -> Turn:
        about = tuple((f.thing, f.noun) for f in facts)
        return Turn(kind, self.question, answer, about)

    def readings(self) -> Iterator[Turn]:
        yield from self._plain()
        yield from self._backwards()
        yield from self._of_two_facts()
        yield from self._of_a_thing()
        yield from self._of_lists()

    def _plain(self) -> Iterator[Turn]:
        named = [(m["E"], m["noun"]) for m in self._fits(*wordings.QUESTIONS)]
        for a in self.genre.attributes:
            named += [(m["E"], a.noun) for m in self._fits(a.questions, a.unseen_questions)]
        for name, noun in named:
            if fact := self._fact(name, noun):
                kind = asking.direct_kind(self.document, fact)
                yield self._turn(kind, self.answers.direct(fact), fact)
        for m in self._fits(*wordings.USE_CASES):
            if fact := self._fact(m["E"], m["noun"]):
                yield self._turn("use case", self.answers.direct(fact), fact)
        for m in self._fits(*wordings.CREATIVE):
            if fact := self._fact(m["E"], m["noun"]):
                yield self._turn("creative", self.answers.creative(fact), fact)
        for m in self._fits(*wordings.YES_NO):
            if fact := self._fact(m["E"], m["noun"]):
                yield self._turn("yes/no", self.answers.yes_no(fact, m["V"]), fact)

    def _backwards(self) -> Iterator[Turn]:
        named = [(m["noun"], m["V"]) for m in self._fits(*wordings.REVERSE)]
        for a in self.genre.attributes:
            named += [(a.noun, m["V"]) for m in self._fits(a.reverse_questions)]
        for noun, value in named:
            if fact := self._by_value(noun, value):
                yield self._turn("reverse", self.answers.backwards(fact), fact)

    def _of_two_facts(self) -> Iterator[Turn]:
        for m in self._fits(*wordings.CHAIN):
            first = self._fact(m["E"], m["noun"])
            if first and (second := self._fact(first.value, m["second"])):
                answer = self.answers.two_hop(first, second, forward=True)
                yield self._turn("two-hop", answer, first, second)
        for m in self._fits(*wordings.WHOSE):
            first = self._by_value(m["noun"], m["V"])
            if first and (second := self.document.facts.get((first.thing, m["second"]))):
                answer = self.answers.two_hop(first, second, forward=False)
                yield self._turn("two-hop", answer, first, second)
        for m in self._fits(*wordings.COMPARE):
            a, b = self._fact(m["A"], m["noun"]), self._fact(m["B"], m["noun"])
            if a and b and a.value != b.value:
                of = self.answers.kind(a)
                if m["more"] in (LESS.get(of), MORE.get(of)):
                    kind = "compare" if of == "number" else "order"
                    yield self._turn(kind, self.answers.compared(a, b, m["more"]), a, b)
        if self.genre.in_time:
            for m in self._fits(*wordings.NEXT):
                thing = self.things.get(m["E"])
                if thing and (answer := self.answers.after(thing)):
                    yield self._turn("order", answer)

    def _of_a_thing(self) -> Iterator[Turn]:
        facts = self.document.facts
        for m in self._fits(*wordings.SUMMARY):
            if thing := self.things.get(m["E"]):
                used = [f for f in facts.values() if f.thing == thing]
                if answer := self.answers.summary(thing):
                    yield self._turn("summary", answer, *used)
        for m in self._fits(*wordings.STRUCTURE):
            thing, nouns = self.things.get(m["E"], ""), m["nouns"].split(" and ")
            if m["form"] in asking.FORMS and all((thing, n) in facts for n in nouns):
                answer = self.answers.structure(thing, nouns, m["form"])
                yield self._turn("structure", answer, *(facts[thing, n] for n in nouns))

    def _of_lists(self) -> Iterator[Turn]:
        for m in self._fits(*wordings.LIST):
            for listing in self.document.listings:
                if listing.what == m["what"]:
                    yield self._turn("listing", self.answers.listing(listing))
        for m in self._fits(*wordings.COUNT):
            for listing in self.document.listings:
                if listing.what == m["what"] and not listing.numbered:
                    yield self._turn("count", self.answers.count(listing))
        for m in self._fits(*wordings.QUOTE):
            for note in self.document.quotations:
                if note.about and self.genre.named(note.about) == m["E"]:
                    yield self._turn("quote", self.answers.quote(note))
        for m in self._fits(*wordings.QUOTE_SENTENCE):
            if self.document.text.count(m["begin"]) != 1:
                continue
            for note in self.document.quotations:
                if asking.beginning(note) == m["begin"] and not note.about:
                    yield self._turn("quote", self.answers.quote(note))
