"""Writes a document of a genre and notes where every fact, list and quotation stands.

A text opens with an introduction, which most often names its things; then each thing has a section:
facts in random order and wording, later ones with pronouns, between sentences that state nothing.
Tables, rosters of groups, steps of a job, repeated facts and later corrections come with it.
`fillers` sets how thin the facts are spread: at 3, one fact takes 40 to 80 tokens.
"""

import random
from typing import Any

from experiments.embedded_world.world import pools, wordings
from experiments.embedded_world.world.noise import jumbled, strewn
from experiments.embedded_world.world.schema import (
    Attribute,
    GeneratedDocument,
    Genre,
    Listing,
    Quotation,
    Span,
    Split,
    Statement,
)
from experiments.embedded_world.world.wordings import Wordings

BY_NAME = {
    "train": "The {noun} of {s} is {V}.",
    "noisy": "The {noun} of {s} is {V}.",
    "validation": "For {s} the {noun} is {V}.",
    "test": wordings.STATEMENTS.test[0],
}
JUMBLED_SHARE = 0.1  # of the statements in noisy texts
SPECIAL_SHARE = 0.3  # of the statements are in wordings of their attribute, where it has any
PLACES = ("Hall", "House", "Works", "Society", "Office", "Club", "Valley", "Park")

FACT_SHARES = (0.3, 0.8)  # a document draws how likely a thing has an attribute; two at least
PRONOUN_SHARE = 0.4  # of the sentences that could have one
OPENING_SHARE = 0.15
QUOTATION_SHARE = 0.3  # of the things
RESTATED_SHARE = 0.12  # of the facts
TABLE_SHARE = 0.12  # of the documents whose genre has no table of its own
CORRECTED_SHARE = 0.5  # of the documents, one or two facts each
CHARACTERS_OF_FACT, CHARACTERS_OF_FILLER = 34, 40  # on average; they only set how many things


def write_document(
    rng: random.Random, genre: Genre, num_characters: int, split: Split, fillers: float
) -> GeneratedDocument:
    """Writes a text of roughly `num_characters`; two things at least.

    Args:
      rng: source of every choice; equal states give equal documents.
      genre: what it is about.
      num_characters: some 3.5 to 4.4 of them are a token, in code 2.6.
      split: which wordings it uses.
      fillers: sentences without a fact for each one with a fact.
    """
    fact_share = rng.uniform(*FACT_SHARES)
    of_fact = CHARACTERS_OF_FACT + fillers * CHARACTERS_OF_FILLER
    of_thing = _facts_of_thing(genre, fact_share) * of_fact + 20
    count = max(2, min(40, round((num_characters - 100) / of_thing)))
    return _Writer(rng, genre, split, fillers, fact_share, count).document()


def most_fillers(genre: Genre, num_characters: int, num_things: int) -> float:
    """The most `fillers` with which so many things fit a text."""
    facts = _facts_of_thing(genre, sum(FACT_SHARES) / 2)
    of_fact = ((num_characters - 100) / num_things - 20) / facts
    return max(0.0, (of_fact - CHARACTERS_OF_FACT) / CHARACTERS_OF_FILLER)


def _facts_of_thing(genre: Genre, fact_share: float) -> float:
    return max(2.0, fact_share * len(genre.attributes))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


class _Writer:
    def __init__(
        self,
        rng: random.Random,
        genre: Genre,
        split: Split,
        fillers: float,
        fact_share: float,
        count: int,
    ):
        self.rng, self.genre, self.fillers = rng, genre, fillers
        self.fact_share = fact_share
        self.split: Split = split
        self.text = ""
        self.statements: list[Statement] = []
        self.listings: list[Listing] = []
        self.quotations: list[Quotation] = []
        self.sections: list[tuple[str, Span]] = []
        self.intro = 0  # where the thing that the text is at was named last
        self.clear = False  # whether a pronoun would be understood as that thing
        self.remarks: list[str] = []  # not made yet in this section
        self.used: set[tuple[str, str]] = set()
        self.things = self._draw_things(count)
        self.values = self._draw_values()
        self.in_table: tuple[str, ...] = ()

    # ---- what is true

    def _draw_things(self, count: int) -> list[str]:
        things: dict[str, None] = {}
        while len(things) < count:
            things[self.genre.draw_name(self.rng)] = None
        return list(things)

    def _draw_value(self, attribute: Attribute) -> str:
        """A value that no other thing has."""
        for _ in range(1000):
            value = attribute.draw(self.rng)
            if (attribute.noun, value) not in self.used:
                break
        self.used.add((attribute.noun, value))
        return value

    def _draw_values(self) -> dict[str, dict[str, str]]:
        rng, genre = self.rng, self.genre
        groups = {
            a.noun: [self._draw_value(a) for _ in range(rng.choice((2, 2, 3)))]
            for a in genre.attributes
            if a.kind == "group"
        }
        values: dict[str, dict[str, str]] = {}
        for thing in self.things:
            chosen = [a for a in genre.attributes if rng.random() < self.fact_share]
            if len(chosen) < 2:
                chosen = rng.sample(genre.attributes, 2)
            if genre.in_time and not any(a.kind == "year" for a in chosen):
                chosen.append(next(a for a in genre.attributes if a.kind == "year"))
            values[thing] = {}
            for attribute in chosen:
                if attribute.kind == "group":
                    value = rng.choice(groups[attribute.noun])
                elif attribute.kind == "entity":
                    others = [t for t in self.things if t != thing]
                    value = genre.named(rng.choice(others))
                    if (attribute.noun, value) in self.used:  # so that the way back is unique
                        continue
                    self.used.add((attribute.noun, value))
                else:
                    value = self._draw_value(attribute)
                values[thing][attribute.noun] = value
        if genre.in_time:
            year = next(a.noun for a in genre.attributes if a.kind == "year")
            self.things.sort(key=lambda t: values[t][year])
        return values

    # ---- how it is written

    def document(self) -> GeneratedDocument:
        rng, genre = self.rng, self.genre
        place = f"{pools.made_up_name(rng)} {rng.choice(PLACES)}"
        if genre.layout == "code":
            place = f"{rng.choice(pools.CODE_NOUNS)}_{rng.choice(pools.CODE_NOUNS)}"
        if genre.name == "product manual":
            place = pools.made_up_name(rng)
        title = rng.choice(genre.titles).format(place=place)
        self.text = rng.choice(genre.intros).format(place=place)
        if rng.random() < 0.7:
            self._list_of_things()
        if rng.random() < 0.6:
            self._rosters()
        if genre.layout == "table" or (genre.layout != "code" and rng.random() < TABLE_SHARE):
            self._table()
        style = rng.choice(("\n\n## {E}\n", "\n\n{E}. ", "\n* ", "\n\n", "\n"))
        for thing in self.things:
            if genre.layout == "code":
                self._function(thing)
            else:
                self._section(thing, style)
        for _ in range(rng.choice((0, 1, 1, 2)) if genre.procedures[0] else 0):
            self._procedure()
        if genre.layout != "code" and rng.random() < CORRECTED_SHARE:
            self._corrections(rng.choice((1, 1, 2)))
        unstated = frozenset(
            (thing, a.noun)
            for thing in self.things
            for a in genre.attributes
            if a.noun not in self.values[thing]
        )
        return GeneratedDocument(
            genre, self.split, title, self.text, tuple(self.things), tuple(self.statements),
            tuple(self.listings), tuple(self.quotations), unstated,
            sections=tuple(self.sections), order=tuple(self.things),
        )  # fmt: skip

    def _span(self, start: int, intro: int | None = None) -> Span:
        return Span(start if intro is None else intro, start, len(self.text))

    def _enumerate(self, items: list[str]) -> str:
        return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"

    def _list_of_things(self) -> None:
        genre = self.genre
        self.text += " "
        start = len(self.text)
        items = [genre.named(t) for t in self.things]
        self.text += f"The {genre.things} are {self._enumerate(items)}."
        self.listings.append(
            Listing(f"{genre.things} of the text", tuple(items), self._span(start))
        )

    def _rosters(self) -> None:
        genre = self.genre
        for attribute in genre.attributes:
            if attribute.kind != "group":
                continue
            by_value: dict[str, list[str]] = {}
            for thing in self.things:
                if attribute.noun in self.values[thing]:
                    by_value.setdefault(self.values[thing][attribute.noun], []).append(thing)
            for value, things in by_value.items():
                self.text += self.rng.choice((" ", "\n"))
                start = len(self.text)
                items = [genre.named(t) for t in things]
                self.text += f"The {value} {attribute.noun} has {self._enumerate(items)}."
                what = f"{genre.things} of the {value} {attribute.noun}"
                group = (attribute.noun, value)
                self.listings.append(Listing(what, tuple(items), self._span(start), of_group=group))

    def _table(self) -> None:
        """Two or three attributes in columns; what stands there stands nowhere else."""
        rng, genre = self.rng, self.genre
        fitting = [a for a in genre.attributes if a.kind in ("number", "year", "open", "code")]
        chosen = rng.sample(fitting, min(len(fitting), rng.choice((2, 3))))
        self.in_table = tuple(a.noun for a in chosen)
        self.text += "\n\n"
        start = len(self.text)
        rows = [(genre.thing, *self.in_table), tuple("---" for _ in range(len(chosen) + 1))]
        self.text += "\n".join(f"| {' | '.join(row)} |" for row in rows)
        for thing in self.things:
            self.text += "\n"
            begin = len(self.text)
            values = self.values[thing]
            for a in chosen:
                if a.noun not in values:
                    values[a.noun] = self._draw_value(a)
            cells = [thing, *(values[noun] for noun in self.in_table)]
            self.text += f"| {' | '.join(cells)} |"
            for noun in self.in_table:
                span = self._span(begin, start)
                self.statements.append(Statement(thing, noun, values[noun], span, "table"))

    def _one_of(self, said: Wordings, around: bool = True) -> str:
        wording = self.rng.choice(said.of(self.split))
        return strewn(self.rng, wording, around) if self.split == "noisy" else wording

    def _wording(self, attribute: Attribute) -> str:
        # Of two things in any order nobody could say which one the fact is about.
        two_things = attribute.kind == "entity"
        if self.split == "noisy" and not two_things and self.rng.random() < JUMBLED_SHARE:
            return jumbled(self.rng)
        special = attribute.statements and self.rng.random() < SPECIAL_SHARE
        own = attribute.statements if special else ()
        return self._one_of(wordings.STATEMENTS.of_attribute(own, attribute.unseen))

    def _fill(self, wording: str, thing: str, pronoun: str, **values: str) -> str:
        """A sentence; `pronoun` is the thing's ("" for its name)."""
        rng, genre = self.rng, self.genre
        possessive = {"She": "Her", "He": "His", "It": "Its"}.get(pronoun, "")
        opening = ""
        fits = wording.startswith(("{S}", "{P}")) and ": {V}" not in wording
        if fits and rng.random() < OPENING_SHARE:
            opening = rng.choice(wordings.OPENINGS.of(self.split))
        at_start = not opening and wording.startswith(("{S}", "{P}"))
        name = genre.starting(thing) if at_start else genre.named(thing)
        subject = pronoun or name
        owner = possessive or f"{name}'s"
        if pronoun and not at_start:
            subject, owner = subject.lower(), owner.lower()
        if wording.startswith("{V}"):
            values["V"] = _upper(values["V"])
        said = wording.format(S=subject, P=owner, s=genre.named(thing), **values)
        return f"{opening} {said}".strip()

    def _pronoun(self, thing: str) -> str:
        if not self.genre.persons:
            return "It"
        return "She" if thing.split()[0] in pools.FEMALE else "He"

    def _section(self, thing: str, style: str) -> None:
        rng, genre = self.rng, self.genre
        told = [a for a in genre.attributes if a.noun in self.values[thing]]
        told = [a for a in told if a.noun not in self.in_table]
        rng.shuffle(told)
        sentences: list[Attribute | None] = []  # None states nothing
        for attribute in told:
            sentences += [None] * _drawn_count(rng, self.fillers * rng.uniform(0.5, 1.5))
            sentences.append(attribute)
        sentences += [a for a in told if rng.random() < RESTATED_SHARE]
        quoted = rng.randrange(len(sentences) + 1) if rng.random() < QUOTATION_SHARE else -1
        heading = style.format(E=genre.starting(thing))
        self.text += heading
        begin = self.intro = len(self.text) - len(heading.lstrip())
        self.clear, self.remarks = "{E}" in style, []
        for i, attribute in enumerate([*sentences, None]):
            if i == quoted:
                self._quotation(thing)
                self.text += " "
            if i == len(sentences):
                break
            if attribute is None:
                self._filler(thing)
            else:
                self._fact(thing, attribute)
            self.text += " "
        self.text = self.text.rstrip(" ")
        self.sections.append((thing, Span(begin, begin, len(self.text))))

    def _drawn_pronoun(self, wording: str, thing: str) -> str:
        at_start = wording.startswith(("{S}", "{P}"))  # not "Many know she"
        drawn = self.clear and at_start and self.rng.random() < PRONOUN_SHARE
        return self._pronoun(thing) if drawn else ""

    def _fact(self, thing: str, attribute: Attribute) -> None:
        wording = self._wording(attribute)
        names_it = any(place in wording for place in ("{S}", "{P}", "{s}"))
        if not names_it and not self.clear:
            wording, names_it = BY_NAME[self.split], True
        pronoun = self._drawn_pronoun(wording, thing)
        value = self.values[thing][attribute.noun]
        start = len(self.text)
        self.text += self._fill(wording, thing, pronoun, V=value, noun=attribute.noun)
        if names_it and not pronoun:
            self.intro = start
        self.statements.append(
            Statement(thing, attribute.noun, value, self._span(start, self.intro))
        )
        # "Her manager is Emma Dahl. She ...": who?
        self.clear = attribute.kind != "entity" and attribute.draw is not pools.person

    def _filler(self, thing: str) -> None:
        rng, start = self.rng, len(self.text)
        if rng.random() < 0.5:
            sentence = f"{_upper(pools.sentence(rng))}."
            self.text += sentence
            self.quotations.append(Quotation("", sentence, self._span(start)))
            self.clear = self.clear and self.genre.persons  # "It" would be something of this
            return
        if not self.remarks:
            self.remarks = rng.sample(self.genre.remarks, len(self.genre.remarks))
        remark = self.remarks.pop()
        pronoun = self._drawn_pronoun(remark, thing)
        self.text += self._fill(remark, thing, pronoun)
        if ("{S}" in remark or "{P}" in remark) and not pronoun:
            self.intro, self.clear = start, True

    def _quotation(self, thing: str) -> None:
        self.intro = start = len(self.text)
        words = f"{_upper(pools.sentence(self.rng))}."
        if self.genre.persons:
            self.text += f'{thing} said: "{words}"'
        else:
            self.text += f'A note on {self.genre.named(thing)} reads: "{words}"'
        self.clear = self.genre.persons
        self.quotations.append(Quotation(thing, words, self._span(start)))

    def _function(self, thing: str) -> None:
        rng = self.rng
        self.text += "\n\n"
        intro = len(self.text)
        self.text += f"def {thing}(size):"
        if rng.random() < QUOTATION_SHARE:
            words = f"{_upper(pools.sentence(rng))}."
            self.text += f'\n    """{words}"""'
            self.quotations.append(Quotation(thing, words, self._span(intro)))
        told = [a for a in self.genre.attributes if a.noun in self.values[thing]]
        rng.shuffle(told)
        told.sort(key=lambda a: a.kind == "entity")  # what it calls comes last
        for attribute in told:
            for _ in range(_drawn_count(rng, self.fillers)):
                self.text += f"\n    {rng.choice(self.genre.remarks)}"
            self.text += "\n    "
            start = len(self.text)
            is_call = attribute.kind == "entity"
            special = is_call or rng.random() < SPECIAL_SHARE
            seen = attribute.statements if special else wordings.CODE_STATEMENTS
            tested = attribute.unseen if is_call else wordings.CODE_TESTS
            own = Wordings(seen, validation=attribute.unseen, test=tested)
            said = self._one_of(own, around=False)
            value = self.values[thing][attribute.noun]
            self.text += said.format(V=value, noun=attribute.noun)
            self.statements.append(
                Statement(thing, attribute.noun, value, self._span(start, intro))
            )
        self.sections.append((thing, Span(intro, intro, len(self.text))))

    def _procedure(self) -> None:
        rng = self.rng
        verbs, jobs = self.genre.procedures
        job = rng.choice(jobs)
        if any(listing.what == f"steps to {job}" for listing in self.listings):
            return
        self.text += "\n\n"
        start = len(self.text)
        parts = [self.genre.draw_name(rng) for _ in range(rng.randrange(3, 7))]
        steps = [f"{rng.choice(verbs)} the {part}." for part in parts]
        self.text += f"To {job}:"
        for number, step in enumerate(steps, start=1):
            self.text += f"\n{number}. {step}"
        self.listings.append(
            Listing(f"steps to {job}", tuple(steps), self._span(start), numbered=True)
        )

    def _corrections(self, count: int) -> None:
        rng = self.rng
        # Lists and the way from an entity back to its owner would have to change with them.
        fitting: list[Any] = [
            s for s in self.statements
            if self.genre.attribute(s.noun).kind not in ("group", "entity")
            and not (self.genre.in_time and self.genre.attribute(s.noun).kind == "year")
        ]  # fmt: skip
        for old in rng.sample(fitting, min(count, len(fitting))):
            if self.values[old.thing][old.noun] != old.value:
                continue  # corrected once
            value = self._draw_value(self.genre.attribute(old.noun))
            self.values[old.thing][old.noun] = value
            self.text += rng.choice(("\n\n", "\n"))
            start = len(self.text)
            wording = self._one_of(wordings.CORRECTIONS)
            self.text += wording.format(s=self.genre.named(old.thing), noun=old.noun, V=value)
            self.statements.append(
                Statement(old.thing, old.noun, value, self._span(start), "update")
            )


def _drawn_count(rng: random.Random, mean: float) -> int:
    """A whole number with this mean."""
    return int(mean) + (rng.random() < mean - int(mean))
