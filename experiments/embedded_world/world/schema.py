"""What a genre is made of, and what a written document remembers about its own text.

A genre says which things a text is about, which facts there are about them and in which words; the
writer (`writing.py`) turns that into a text and notes where every fact stands; the asker
(`asking.py`) draws questions from those notes. Wordings under `unseen` are for validation alone;
tests have those of `wordings.py`.
"""

import dataclasses
import random
from collections.abc import Callable
from typing import Literal

# open: any text. number and year: comparable, the number comes first. group: shared by several.
# code: a rare string. entity: another thing of the same document.
Kind = Literal["open", "number", "year", "group", "code", "entity"]
# Which wordings: those of training, the same with words strewn in (`noise.py`), those by which
# training is watched, or those of the scores.
Split = Literal["train", "noisy", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One kind of fact.

    In statements {S} is the subject ("Helen Moss" or "She"), {P} its possessive, {s} the thing by
    name inside a sentence, {V} the value; in questions and answers {E} is the thing by name. Every
    attribute is also stated and asked for in the general wordings, by its `noun`.
    """

    noun: str  # "Helen Moss's {noun} is ..."
    kind: Kind
    draw: Callable[[random.Random], str] = lambda rng: (
        ""
    )  # an entity's value is drawn by the writer
    statements: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    unseen_questions: tuple[str, ...] = ()
    answer: str = "{E}'s {noun} is {V}."
    reverse_questions: tuple[str, ...] = ()
    reverse_answer: str = "{V} is the {noun} of {e}."


@dataclasses.dataclass(frozen=True)
class Genre:
    """A kind of text. `article` stands before names in a sentence: "the drain pump"."""

    name: str
    thing: str
    things: str
    titles: tuple[str, ...]  # {place}
    intros: tuple[str, ...]  # {place}
    draw_name: Callable[[random.Random], str]
    attributes: tuple[Attribute, ...]
    remarks: tuple[str, ...]  # sentences about {S} that state no fact
    article: str = ""
    layout: Literal["sections", "table", "code"] = "sections"
    persons: bool = False
    in_time: bool = False  # things stand in the order of their year
    procedures: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # verbs and objects of steps

    def attribute(self, noun: str) -> Attribute:
        return next(a for a in self.attributes if a.noun == noun)

    def named(self, thing: str) -> str:
        """The name as it stands inside a sentence."""
        return f"{self.article}{thing}"

    def starting(self, thing: str) -> str:
        """The name as it stands at the start of a sentence."""
        return f"{self.article.capitalize()}{thing}"


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters of a text that one must see, from `intro`, which says what it is about."""

    intro: int
    start: int
    end: int

    def inside(self, start: int, end: int) -> bool:
        return self.intro >= start and self.end <= end

    def moved(self, by: int) -> "Span":
        return Span(self.intro + by, self.start + by, self.end + by)


@dataclasses.dataclass(frozen=True)
class Statement:
    """One place of a text that states a fact; a later one about the same noun overrules it."""

    thing: str
    noun: str
    value: str
    span: Span
    place: Literal["text", "table", "update"] = "text"


@dataclasses.dataclass(frozen=True)
class Listing:
    """An enumeration that stands in the text: of all things, of a group, or the steps of a job."""

    what: str  # as asked for: "people of the text", "people of the design team", "steps to ..."
    items: tuple[str, ...]
    span: Span
    numbered: bool = False  # the steps of a job
    of_group: tuple[str, str] | None = None  # the noun and value that all items share


@dataclasses.dataclass(frozen=True)
class Quotation:
    """Words that the text gives as said about a thing, or a sentence that states no fact."""

    about: str  # empty for a plain sentence
    words: str
    span: Span


@dataclasses.dataclass(frozen=True)
class GeneratedDocument:
    """A text and everything one can know from it."""

    genre: Genre
    split: Split
    title: str
    text: str
    things: tuple[str, ...]
    statements: tuple[Statement, ...]
    listings: tuple[Listing, ...] = ()
    quotations: tuple[Quotation, ...] = ()
    # (thing, noun) that the text states nowhere, not even in part.
    unstated: frozenset[tuple[str, str]] = frozenset()
    # Things of which the text shows more than one can be asked about: a fact cut in part, or a
    # group that is told in a list alone.
    in_part: frozenset[str] = frozenset()
    sections: tuple[tuple[str, Span], ...] = ()  # where the text is about which thing
    order: tuple[str, ...] = ()  # all things of the whole text, as they come

    @property
    def facts(self) -> dict[tuple[str, str], Statement]:
        """(thing, noun) -> what the text says last about it."""
        return {(s.thing, s.noun): s for s in self.statements}

    def values(self, thing: str) -> dict[str, str]:
        """The values of one thing by noun, in the order in which the text first gives them."""
        return {noun: s.value for (t, noun), s in self.facts.items() if t == thing}

    def window(self, start: int, end: int) -> "GeneratedDocument":
        """Cuts the text to [start, end) and keeps what can still be known from it."""

        def kept(notes):
            return tuple(
                dataclasses.replace(note, span=note.span.moved(-start))
                for note in notes
                if note.span.inside(start, end)
            )

        statements = kept(self.statements)
        named = {s.thing for s in statements}
        touched = {
            (s.thing, s.noun) for s in self.statements if s.span.end > start and s.span.start < end
        }
        hidden = {(s.thing, s.noun) for s in self.statements} - touched
        known = {(s.thing, s.noun) for s in statements}
        grouped = {
            (s.thing, s.noun)
            for s in self.statements
            for listing in self.listings
            if listing.of_group == (s.noun, s.value)
            and listing.span.end > start
            and listing.span.start < end
        }
        in_part = {thing for thing, _ in (touched | grouped) - known}
        return dataclasses.replace(
            self,
            text=self.text[start:end],
            things=tuple(t for t in self.things if t in named),
            statements=statements,
            listings=kept(self.listings),
            quotations=kept(self.quotations),
            unstated=self.unstated | hidden,
            in_part=self.in_part | in_part,
            sections=tuple((t, s.moved(-start)) for t, s in self.sections),
        )
