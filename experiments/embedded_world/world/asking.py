"""Questions about a document of the world, each with its right answer."""

import dataclasses
import random

from experiments.embedded_world.world import wordings
from experiments.embedded_world.world.answering import LESS, MORE, Answers
from experiments.embedded_world.world.noise import strewn
from experiments.embedded_world.world.schema import GeneratedDocument, Quotation, Statement
from experiments.embedded_world.world.wordings import Wordings

FORMS = ("JSON", "YAML", "a list")
MOST_COUNTED = 12
BACKWARDS_SHARE = 0.4  # of a fact stream's statements
FRAMED_SHARE = 0.25  # of the questions in training have words around them that change nothing

WEIGHTS = {  # by which a kind is drawn; what a document gives no ground for is drawn anew
    "lookup": 0.15,
    "update": 0.08,
    "copy": 0.05,
    "table": 0.15,
    "reverse": 0.12,
    "two-hop": 0.09,
    "calls": 0.12,
    "compare": 0.08,
    "order": 0.09,
    "yes/no": 0.08,
    "absent": 0.07,
    "listing": 0.10,
    "count": 0.07,
    "quote": 0.09,
    "summary": 0.05,
    "structure": 0.07,
    "use case": 0.05,
    "creative": 0.02,
}
KINDS = tuple(WEIGHTS)
KINDS_OF_FAMILY = {  # what bot A may ask for each family of seed prompts
    "structuring": ("structure",),
    "summarization": ("summary",),
    "question": (
        "direct", "direct", "direct", "reverse", "reverse", "two-hop", "compare", "order",
        "yes/no",
    ),
    "use_case": ("use case",),
    "creative": ("creative",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Turn:
    """A user's message with the right answer; `kind` is the question type."""

    kind: str
    question: str
    answer: str
    facts: tuple[tuple[str, str], ...] = ()  # (thing, noun) that the answer rests on


def direct_kind(document: GeneratedDocument, fact: Statement) -> str:
    """The type of the plain question for one fact's value."""
    attribute = document.genre.attribute(fact.noun)
    if attribute.answer.startswith("{E} calls"):
        return "calls"
    if fact.place != "text":
        return fact.place
    return "copy" if attribute.kind == "code" else "lookup"


def draw_turn(
    rng: random.Random,
    document: GeneratedDocument,
    kind: str | None = None,
    about: Statement | None = None,
) -> Turn | None:
    """Draws a question with its right answer.

    Args:
      rng: source of every choice.
      document: a text or a window of one.
      kind: one of `KINDS`, or "direct" for the plain question about a fact; None draws it.
      about: a fact that the question should be about, where the kind is about facts.

    Returns:
      None where the document gives no ground for a question of this kind.
    """
    if kind is None:
        kind = rng.choices(KINDS, weights=list(WEIGHTS.values()))[0]
    asker = _Asker(rng, document, about)
    if not asker.facts:
        return None
    if kind == "direct":
        fact = about or rng.choice(asker.facts)
        return asker.direct(fact)
    maker = getattr(asker, kind.replace("/", "_").replace("-", "_").replace(" ", "_"))
    return maker()


def draw_quote(rng: random.Random, document: GeneratedDocument, note: Quotation) -> Turn | None:
    """Asks for one quotation; None where its first words stand in the text more than once."""
    return _Asker(rng, document, None).quote_of(note)


class _Asker:
    def __init__(self, rng: random.Random, document: GeneratedDocument, about: Statement | None):
        self.rng, self.document, self.about = rng, document, about
        self.genre, self.answers = document.genre, Answers(document)
        self.facts = list(document.facts.values())

    # ---- helpers

    def _wording(self, asked: Wordings) -> str:
        wording = self.rng.choice(asked.of(self.document.split))
        if self.document.split != "noisy":
            return wording
        wording = strewn(self.rng, wording)
        if self.rng.random() < FRAMED_SHARE:
            wording = self.rng.choice(wordings.FRAMES).replace("X", wording)
        return wording

    def _of_attribute(
        self, general: Wordings, own: tuple[str, ...], unseen: tuple[str, ...] = ()
    ) -> Wordings:
        """In training an attribute's own wordings half of the time, the general ones otherwise."""
        return general.of_attribute(own if own and self.rng.random() < 0.5 else (), unseen)

    def _pick(self, fitting: list[Statement]) -> Statement | None:
        if self.about is not None:
            if self.about in fitting:
                return self.about
            fitting = [f for f in fitting if f.thing == self.about.thing] or fitting
        return self.rng.choice(fitting) if fitting else None

    def _turn(self, kind: str, question: str, answer: str, *facts: Statement) -> Turn:
        return Turn(kind, question, answer, tuple((f.thing, f.noun) for f in facts))

    def _ask(self, wording: str, fact: Statement, **values: str) -> str:
        noun, thing = fact.noun, self.genre.thing
        return wording.format(E=self.genre.named(fact.thing), noun=noun, thing=thing, **values)

    # ---- one fact

    def direct(self, fact: Statement) -> Turn:
        attribute = self.genre.attribute(fact.noun)
        asked = (wordings.QUESTIONS, attribute.questions, attribute.unseen_questions)
        wording = self._wording(self._of_attribute(*asked))
        kind = direct_kind(self.document, fact)
        return self._turn(kind, self._ask(wording, fact), self.answers.direct(fact), fact)

    def _direct_of_kind(self, kind: str) -> Turn | None:
        fact = self._pick([f for f in self.facts if direct_kind(self.document, f) == kind])
        return fact and self.direct(fact)

    def lookup(self) -> Turn | None:
        return self._direct_of_kind("lookup")

    def update(self) -> Turn | None:
        return self._direct_of_kind("update")

    def copy(self) -> Turn | None:
        return self._direct_of_kind("copy")

    def table(self) -> Turn | None:
        return self._direct_of_kind("table")

    def calls(self) -> Turn | None:
        fact = self._pick([f for f in self.facts if direct_kind(self.document, f) == "calls"])
        if fact is None or self.rng.random() < 0.5:
            return fact and self.direct(fact)
        return dataclasses.replace(self._backwards(fact), kind="calls")

    def _backwards(self, fact: Statement) -> Turn:
        special = self.genre.attribute(fact.noun).reverse_questions
        wording = self._wording(self._of_attribute(wordings.REVERSE, special))
        question = self._ask(wording, fact, V=fact.value)
        return self._turn("reverse", question, self.answers.backwards(fact), fact)

    def reverse(self) -> Turn | None:
        fact = self._pick(
            [
                f for f in self.facts
                if self.answers.kind(f) != "group" and direct_kind(self.document, f) != "calls"
            ]
        )  # fmt: skip
        return fact and self._backwards(fact)

    def use_case(self) -> Turn | None:
        fact = self._pick(self.facts)
        if fact is None:
            return None
        question = self._ask(self._wording(wordings.USE_CASES), fact)
        return self._turn("use case", question, self.answers.direct(fact), fact)

    def creative(self) -> Turn | None:
        fact = self._pick(self.facts)
        if fact is None:
            return None
        question = self._ask(self._wording(wordings.CREATIVE), fact)
        return self._turn("creative", question, self.answers.creative(fact), fact)

    def yes_no(self) -> Turn | None:
        fact = self._pick([f for f in self.facts if self.answers.kind(f) != "entity"])
        if fact is None:
            return None
        claimed = fact.value
        if self.rng.random() < 0.5:
            # What was said before a correction is among them.
            said = {s.value for s in self.document.statements if s.noun == fact.noun}
            others = said - {fact.value}
            fresh = self.genre.attribute(fact.noun).draw(self.rng)
            claimed = self.rng.choice(sorted(others)) if others else fresh
        question = self._ask(self._wording(wordings.YES_NO), fact, V=claimed)
        return self._turn("yes/no", question, self.answers.yes_no(fact, claimed), fact)

    def absent(self) -> Turn | None:
        """A fact that no place of the whole document states, or a thing that is not in it."""
        rng, genre = self.rng, self.genre
        nouns = [a.noun for a in genre.attributes if a.kind != "group"]
        if not nouns:
            return None
        missing = [
            (t, n) for t in self.document.things for n in nouns if (t, n) in self.document.unstated
        ]
        if not missing or rng.random() < 0.3:
            stranger = genre.draw_name(rng)
            while stranger in self.document.text:
                stranger = genre.draw_name(rng)
            missing = [(stranger, rng.choice(nouns))]
        thing, noun = rng.choice(missing)
        attribute = genre.attribute(noun)
        asked = (wordings.QUESTIONS, attribute.questions, attribute.unseen_questions)
        wording = self._wording(self._of_attribute(*asked))
        question = wording.format(E=genre.named(thing), noun=noun)
        return self._turn("absent", question, self.answers.absent(thing, noun))

    # ---- several facts

    def two_hop(self) -> Turn | None:
        rng, genre = self.rng, self.genre
        by_name = {genre.named(t): t for t in self.document.things}
        first = self._pick([f for f in self.facts if self.answers.kind(f) != "group"])
        if first is None:
            return None
        entity = self.answers.kind(first) == "entity" and first.value in by_name
        forward = entity and rng.random() < 0.7
        thing = by_name[first.value] if forward else first.thing
        others = [f for f in self.facts if f.thing == thing and f.noun != first.noun]
        if not others:
            return None
        second = rng.choice(others)
        wording = self._wording(wordings.CHAIN if forward else wordings.WHOSE)
        question = self._ask(wording, first, V=first.value, second=second.noun)
        answer = self.answers.two_hop(first, second, forward)
        return self._turn("two-hop", question, answer, first, second)

    def _compared(self, kind: str, of: str) -> Turn | None:
        fitting = [f for f in self.facts if self.answers.kind(f) == of]
        first = self._pick(fitting)
        others = [f for f in fitting if first and f.noun == first.noun and f.value != first.value]
        if first is None or not others:
            return None
        a, b = self.rng.sample([first, self.rng.choice(others)], 2)
        word = self.rng.choice((LESS[of], MORE[of]))
        wording = self._wording(wordings.COMPARE)
        names = {"A": self.genre.named(a.thing), "B": self.genre.named(b.thing)}
        question = wording.format(more=word, noun=a.noun, **names)
        return self._turn(kind, question, self.answers.compared(a, b, word), a, b)

    def compare(self) -> Turn | None:
        return self._compared("compare", "number")

    def order(self) -> Turn | None:
        things = self.document.things
        if not self.genre.in_time or len(things) < 2 or self.rng.random() < 0.5:
            return self._compared("order", "year")
        thing = self.rng.choice(things[:-1])
        answer = self.answers.after(thing)
        wording = self._wording(wordings.NEXT)
        question = wording.format(E=self.genre.named(thing), thing=self.genre.thing)
        return self._turn("order", question, answer) if answer else None

    def summary(self) -> Turn | None:
        fact = self._pick(self.facts)
        if fact is None:
            return None
        question = self._ask(self._wording(wordings.SUMMARY), fact)
        used = [self.document.facts[fact.thing, n] for n in self.document.values(fact.thing)]
        answer = self.answers.summary(fact.thing)
        return self._turn("summary", question, answer, *used) if answer else None

    def structure(self) -> Turn | None:
        rng = self.rng
        fact = self._pick(self.facts)
        if fact is None:
            return None
        others = [f for f in self.facts if f.thing == fact.thing and f != fact]
        chosen = [fact, *rng.sample(others, min(len(others), rng.choice((0, 1, 1, 2))))]
        rng.shuffle(chosen)
        nouns, form = [f.noun for f in chosen], rng.choice(FORMS)
        wording = self._wording(wordings.STRUCTURE)
        question = self._ask(wording, fact, nouns=" and ".join(nouns), form=form)
        answer = self.answers.structure(fact.thing, nouns, form)
        return self._turn("structure", question, answer, *chosen)

    # ---- lists and quotations

    def listing(self) -> Turn | None:
        if not self.document.listings:
            return None
        listing = self.rng.choice(self.document.listings)
        question = self._wording(wordings.LIST).format(what=listing.what)
        return self._turn("listing", question, self.answers.listing(listing))

    def count(self) -> Turn | None:
        fitting = [x for x in self.document.listings if not x.numbered]
        fitting = [x for x in fitting if len(x.items) <= MOST_COUNTED]
        if not fitting:
            return None
        listing = self.rng.choice(fitting)
        question = self._wording(wordings.COUNT).format(what=listing.what)
        return self._turn("count", question, self.answers.count(listing))

    def quote(self) -> Turn | None:
        notes = self.document.quotations
        if self.about is not None:
            notes = tuple(n for n in notes if n.about == self.about.thing)
        if not notes:
            return None
        note = self.rng.choice(notes)
        return self.quote_of(note)

    def quote_of(self, note: Quotation) -> Turn | None:
        if note.about:
            question = self._wording(wordings.QUOTE).format(E=self.genre.named(note.about))
        else:
            begin = beginning(note)
            if self.document.text.count(begin) != 1:
                return None
            wording = self._wording(wordings.QUOTE_SENTENCE)
            question = wording.format(begin=begin)
        return self._turn("quote", question, self.answers.quote(note))


def beginning(note: Quotation) -> str:
    """The words by which a sentence is asked for."""
    return " ".join(note.words.split()[:3])


def _said(rng: random.Random, answers: Answers, fact: Statement) -> tuple[str, str]:
    """A fact as answers say it, forwards or backwards, and the value or the thing it ends up at."""
    if answers.kind(fact) != "group" and rng.random() < BACKWARDS_SHARE:
        return answers.backwards(fact), answers.document.genre.named(fact.thing)
    return answers.direct(fact), fact.value


def recital(rng: random.Random, document: GeneratedDocument) -> list[tuple[Statement, str, str]]:
    """All facts of a document once, in random order.

    Dense exercise in reading: something from the text every ten tokens, where a conversation has
    it every forty.

    Returns:
      (fact, statement, what it has from the text) triples.
    """
    answers, facts = Answers(document), list(document.facts.values())
    return [(fact, *_said(rng, answers, fact)) for fact in rng.sample(facts, len(facts))]


def fact_stream(
    rng: random.Random, document: GeneratedDocument, num_statements: int
) -> list[tuple[str, str]]:
    """Some of a document's facts, again and again in random order.

    Dense exercise in recall, for the start of training.

    Returns:
      (statement, what it has from before) pairs, the second empty the first time.
    """
    answers, facts = Answers(document), list(document.facts.values())
    facts = rng.sample(facts, min(len(facts), rng.randrange(4, 20)))
    seen: set[Statement] = set()
    stream = []
    for _ in range(num_statements):
        fact = rng.choice(facts)
        said, known = _said(rng, answers, fact)
        stream.append((said, known if fact in seen else ""))
        seen.add(fact)
    return stream


def comparisons(
    rng: random.Random, document: GeneratedDocument, count: int
) -> list[tuple[list[Statement], str, str]]:
    """Pairs of a document's things compared by values drawn anew; none if it has no numbers.

    Returns:
      (two facts, what is said of them, the name that it ends with) triples.
    """
    answers = Answers(document)
    compared = [a for a in document.genre.attributes if a.kind in LESS]
    facts = list(document.facts.values())
    out: list[tuple[list[Statement], str, str]] = []
    if not compared or len(document.things) < 2:
        return out
    while len(out) < count:
        attribute = rng.choice(compared)
        things, values = rng.sample(document.things, 2), [attribute.draw(rng) for _ in range(2)]
        if values[0] == values[1]:
            continue
        a, b = (
            dataclasses.replace(rng.choice(facts), thing=t, noun=attribute.noun, value=v)
            for t, v in zip(things, values, strict=True)
        )
        said = answers.compared(a, b, rng.choice((LESS[attribute.kind], MORE[attribute.kind])))
        out.append(([a, b], said, next(t for t in things if said.endswith(f"{t}."))))
    return out


def chance(document: GeneratedDocument, kind: str) -> float:
    """The share of right answers of somebody who knows every form and value but reads nothing.

    He picks one of the things, or one of the values that the document has for what is asked; where
    several must be right, guessing hardly ever does it.
    """
    nouns = {f.noun for f in document.facts.values()}
    one_value = len(nouns) / max(len(document.facts), 1)  # a noun's values, on average
    direct = ("lookup", "update", "copy", "table", "use case", "creative")
    if kind in direct:
        return one_value
    return {"reverse": 1 / max(len(document.things), 1), "yes/no": 0.5 * one_value}.get(kind, 0.0)
