"""Procedural documents with ground truth: registers of people who do not exist.

`make_document(rng, ...)` writes a register in which every person has up to six facts, each stated
once in one of several wordings, later sentences with pronouns, some sentences that say nothing, and
remembers where each fact stands. From the facts that a window of the text shows, `draw_turn` makes
questions with their right answers, and the messages that bot A should write for a seed prompt. Both
training of the embedded model and its evaluation draw from here, with different seeds.
"""

import dataclasses
import json
import random

from cartridges_jax.embedded import pools
from cartridges_jax.errors import InputError
from cartridges_jax.self_study.prompts import FAMILIES, SEED_PROMPTS


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is stated, asked for, and answered in both directions.

    In the templates S is the subject (a name or a pronoun), P its possessive, N the full name and
    V the value. Answers keep the value within a few tokens of what it depends on.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    reverse_questions: tuple[str, ...]
    reverse_answer: str
    relative: str  # "the person who ..."
    clause: str  # in a summary
    use_case: str


ATTRIBUTES = (
    Attribute(
        "job",
        ("{S} works as a {V}.", "{S} is a {V} by trade.", "{P} job is that of a {V}."),
        ("What is {N}'s job?", "What does {N} work as?", "Which trade does {N} have?"),
        "{N} works as a {V}.",
        ("Who works as a {V}?", "Which person is a {V}?"),
        "The {V} is {N}.",
        "works as a {V}",
        "works as a {V}",
        "I am printing a badge for {N}. Which job should it show?",
    ),
    Attribute(
        "employer",
        ("{S} is employed by {V}.", "{P} employer is {V}.", "{S} is on the payroll of {V}."),
        ("Who employs {N}?", "What is the employer of {N}?", "Which firm does {N} work for?"),
        "{N} is employed by {V}.",
        ("Who is employed by {V}?", "Whom does {V} employ?"),
        "{V} employs {N}.",
        "is employed by {V}",
        "is employed by {V}",
        "I need a reference for {N}. Which firm do I call?",
    ),
    Attribute(
        "city",
        ("{S} lives in {V}.", "{P} home is in {V}.", "{S} has a flat in {V}."),
        ("Where does {N} live?", "In which city does {N} live?", "What is the home city of {N}?"),
        "{N} lives in {V}.",
        ("Who lives in {V}?", "Whose home is in {V}?"),
        "In {V} lives {N}.",
        "lives in {V}",
        "lives in {V}",
        "I am sending a parcel to {N}. Which city goes on the label?",
    ),
    Attribute(
        "birth year",
        ("{S} was born in {V}.", "{P} year of birth is {V}.", "{S} came into the world in {V}."),
        ("When was {N} born?", "In which year was {N} born?", "What is the birth year of {N}?"),
        "{N} was born in {V}.",
        ("Who was born in {V}?", "Which person has the birth year {V}?"),
        "Born in {V} is {N}.",
        "was born in {V}",
        "was born in {V}",
        "I am filling in a form for {N}. Which year of birth do I write?",
    ),
    Attribute(
        "medication",
        ("{S} takes {V} every day.", "{P} doctor prescribes {V}.", "{P} medication is {V}."),
        ("What does {N} take?", "Which medication does {N} take?", "What is {N}'s medication?"),
        "{N} takes {V}.",
        ("Who takes {V}?", "Which person takes the medication {V}?"),
        "{V} is taken by {N}.",
        "takes {V}",
        "takes {V}",
        "I am at the pharmacy for {N}. Which medication do I ask for?",
    ),
    Attribute(
        "room",
        ("{S} sits in room {V}.", "{P} room is {V}.", "{S} can be found in room {V}."),
        ("Which room does {N} sit in?", "What is {N}'s room?", "Where is the desk of {N}?"),
        "{N} sits in room {V}.",
        ("Who sits in room {V}?", "Whose room is {V}?"),
        "Room {V} belongs to {N}.",
        "sits in room {V}",
        "sits in room {V}",
        "I have a visitor for {N}. Which room do I send him to?",
    ),
)  # fmt: skip
_BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}

_FILLERS = (
    "The entry was checked in spring.",
    "{S} is well liked by the others.",
    "Nothing else was noted at that time.",
    "{S} was glad to be asked for this register.",
    "A copy of the papers is kept in the archive.",
    "{S} asked that the entry be kept short.",
    "The details were confirmed by telephone.",
    "{P} file has been complete for some years.",
)
_PLACES = ("Hall", "House", "Clinic", "Society", "Office", "Club")
_KINDS = ("Register of", "Members of", "Files of", "People of")
_GREETINGS = (
    "Write a birthday card for {N}.",
    "Write a short rhyme for {N}.",
    "Write a greeting to {N}.",
)
PRONOUN_SHARE = 0.6
MAX_PEOPLE = len(pools.MEDICATIONS)  # the smallest pool; nobody shares a value
FACT_SHARE = 0.85  # each person has each attribute with this probability


@dataclasses.dataclass(frozen=True)
class Fact:
    """A stated fact and the characters of the text that one must see to know it."""

    person: str
    attribute: str
    value: str
    intro: int  # start of the latest sentence that names the person, at or before `start`
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class GeneratedDocument:
    title: str
    text: str
    facts: tuple[Fact, ...]

    def window(self, start: int, end: int) -> "GeneratedDocument":
        """Cuts the text to [start, end) and keeps the facts that can still be known from it."""
        kept = [f for f in self.facts if f.intro >= start and f.end <= end]
        moved = [
            dataclasses.replace(f, intro=f.intro - start, start=f.start - start, end=f.end - start)
            for f in kept
        ]
        return GeneratedDocument(self.title, self.text[start:end], tuple(moved))


@dataclasses.dataclass(frozen=True)
class Turn:
    """A user's message with the right answer; `kind` is the question type."""

    kind: str
    family: str
    question: str
    answer: str


def _draw_value(rng: random.Random, attribute: str) -> str:
    match attribute:
        case "job":
            return rng.choice(pools.JOBS)
        case "employer":
            return f"{rng.choice(pools.EMPLOYER_HEADS)} {rng.choice(pools.EMPLOYER_TAILS)}"
        case "city":
            return pools.pick_name(rng, pools.CITIES)
        case "birth year":
            return str(rng.randrange(1930, 2006))
        case "medication":
            return rng.choice(pools.MEDICATIONS)
        case "room":
            return f"{rng.choice('ABCDEFGH')}{rng.randrange(10, 50)}"
    raise ValueError(f"unknown {attribute=}")


def _draw_people(rng: random.Random, count: int) -> list[tuple[str, dict[str, str]]]:
    """Draws people with their values; no two share a name or a value."""
    people: dict[str, dict[str, str]] = {}
    used: set[tuple[str, str]] = set()
    while len(people) < count:
        name = f"{rng.choice(pools.FIRST_NAMES)} {pools.pick_name(rng, pools.LAST_NAMES)}"
        if name in people:
            continue
        values: dict[str, str] = {}
        for attribute in ATTRIBUTES:
            value = _draw_value(rng, attribute.name)
            while (attribute.name, value) in used:
                value = _draw_value(rng, attribute.name)
            used.add((attribute.name, value))
            if rng.random() < FACT_SHARE:
                values[attribute.name] = value
        people[name] = values
    return list(people.items())


def make_document(
    rng: random.Random, num_people: int, filler_share: float | None = None
) -> GeneratedDocument:
    """Writes a register of `num_people` (1 to 40) people, about 65 tokens each.

    Args:
      rng: source of every choice; equal states give equal documents.
      num_people: entries.
      filler_share: sentences without a fact for each one with a fact; None draws it from 0 to 0.5.

    Raises:
      InputError: if there are more people than values to tell them apart.
    """
    if not 1 <= num_people <= MAX_PEOPLE:
        raise InputError(
            f"a register has 1 to {MAX_PEOPLE} people, whose values differ; {num_people=}"
        )
    if filler_share is None:
        filler_share = rng.uniform(0.0, 0.5)
    place = f"{pools.made_up_name(rng)} {rng.choice(_PLACES)}"
    title = f"{rng.choice(_KINDS)} {place}"
    separator = rng.choice((" ", "\n* "))
    text = f"This is the register of {place}."
    facts: list[Fact] = []
    for name, values in _draw_people(rng, num_people):
        female = name.split()[0] in pools.FEMALE
        text += separator
        sentences: list[tuple[str, str | None]] = []
        for attribute in values:
            sentences.append((rng.choice(_BY_NAME[attribute].statements), attribute))
        rng.shuffle(sentences)
        for position in range(len(sentences), 0, -1):
            if rng.random() < filler_share:
                sentences.insert(position, (rng.choice(_FILLERS), None))
        intro = len(text)
        for i, (template, attribute) in enumerate(sentences):
            start = len(text)
            pronoun = i > 0 and rng.random() < PRONOUN_SHARE
            subject = ("She" if female else "He") if pronoun else name
            possessive = ("Her" if female else "His") if pronoun else f"{name}'s"
            value = values[attribute] if attribute else ""
            text += template.format(S=subject, P=possessive, V=value)
            if not pronoun and ("{S}" in template or "{P}" in template):
                intro = start
            if attribute:
                facts.append(Fact(name, attribute, value, intro, start, len(text)))
            text += " "
        text = text.removesuffix(" ")
    return GeneratedDocument(title, text, tuple(facts))


# ---------------------------------------------------------------------------------------------
# Questions

TURN_KINDS = {  # kind: share of the turns in training
    "lookup": 0.38,
    "reverse": 0.22,
    "two-hop": 0.10,
    "compare": 0.06,
    "summary": 0.07,
    "structure": 0.07,
    "use case": 0.06,
    "creative": 0.04,
}
_KINDS_OF_FAMILY = {
    "structuring": ("structure",),
    "summarization": ("summary",),
    "question": ("lookup", "lookup", "reverse", "two-hop", "compare"),
    "use_case": ("use case",),
    "creative": ("creative",),
}
_FAMILY_OF_KIND = {kind: family for family, kinds in _KINDS_OF_FAMILY.items() for kind in kinds}


def _values_of(document: GeneratedDocument, person: str) -> dict[str, str]:
    known = {f.attribute: f.value for f in document.facts if f.person == person}
    return {a.name: known[a.name] for a in ATTRIBUTES if a.name in known}


def _lookup(rng: random.Random, document: GeneratedDocument) -> tuple[str, str]:
    fact = rng.choice(document.facts)
    attribute = _BY_NAME[fact.attribute]
    question = rng.choice(attribute.questions).format(N=fact.person)
    return question, attribute.answer.format(N=fact.person, V=fact.value)


def _reverse(rng: random.Random, document: GeneratedDocument) -> tuple[str, str]:
    fact = rng.choice(document.facts)
    attribute = _BY_NAME[fact.attribute]
    question = rng.choice(attribute.reverse_questions).format(V=fact.value)
    return question, attribute.reverse_answer.format(N=fact.person, V=fact.value)


def _two_hop(rng: random.Random, document: GeneratedDocument) -> tuple[str, str] | None:
    fact = rng.choice(document.facts)
    others = [a for a in _values_of(document, fact.person) if a != fact.attribute]
    if not others:
        return None
    first, second = _BY_NAME[fact.attribute], _BY_NAME[rng.choice(others)]
    value = _values_of(document, fact.person)[second.name]
    question = f"What is the {second.name} of the person who {first.relative.format(V=fact.value)}?"
    bridge = first.reverse_answer.format(N=fact.person, V=fact.value)
    return question, f"{bridge} {second.answer.format(N=fact.person, V=value)}"


def _compare(rng: random.Random, document: GeneratedDocument) -> tuple[str, str] | None:
    born = [f for f in document.facts if f.attribute == "birth year"]
    if len(born) < 2:
        return None
    a, b = rng.sample(born, 2)
    first = min((a, b), key=lambda f: int(f.value))
    question = f"Who was born first, {a.person} or {b.person}?"
    answer = f"{a.person} was born in {a.value}. {b.person} was born in {b.value}."
    return question, f"{answer} The first is {first.person}."


def _summary(rng: random.Random, document: GeneratedDocument) -> tuple[str, str]:
    person = rng.choice(document.facts).person
    clauses = [_BY_NAME[a].clause.format(V=v) for a, v in _values_of(document, person).items()]
    joined = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    template = rng.choice(
        ("Summarise what the text says about {N}.", "Give a summary of the entry of {N}.")
    )
    return template.format(N=person), f"{person} {joined}."


def _structure(rng: random.Random, document: GeneratedDocument) -> tuple[str, str]:
    person = rng.choice(document.facts).person
    values = _values_of(document, person)
    names = rng.sample(sorted(values), min(len(values), rng.choice((1, 2, 3))))
    wanted = {name: values[name] for name in values if name in names}
    form = rng.choice(("JSON", "YAML", "a list"))
    listing = " and ".join(wanted)
    question = f"Write the {listing} of {person} as {form}."
    if form == "JSON":
        return question, json.dumps({"name": person, **wanted})
    bullet = "- " if form == "a list" else ""
    return question, "\n".join(f"{bullet}{k}: {v}" for k, v in {"name": person, **wanted}.items())


def _use_case(rng: random.Random, document: GeneratedDocument) -> tuple[str, str]:
    fact = rng.choice(document.facts)
    attribute = _BY_NAME[fact.attribute]
    question = attribute.use_case.format(N=fact.person)
    return question, attribute.answer.format(N=fact.person, V=fact.value)


def _creative(rng: random.Random, document: GeneratedDocument) -> tuple[str, str]:
    person = rng.choice(document.facts).person
    (name, value), *_ = _values_of(document, person).items()
    clause = _BY_NAME[name].relative.format(V=value)
    question = rng.choice(_GREETINGS).format(N=person)
    return question, f"Dear {person}, all the best to you, who {clause}!"


_MAKERS = {
    "lookup": _lookup,
    "reverse": _reverse,
    "two-hop": _two_hop,
    "compare": _compare,
    "summary": _summary,
    "structure": _structure,
    "use case": _use_case,
    "creative": _creative,
}


def draw_turn(
    rng: random.Random, document: GeneratedDocument, kind: str | None = None
) -> Turn | None:
    """Draws a question of `kind` (None: by the shares of `TURN_KINDS`) with its right answer.

    Returns None where the document shows too few facts for the kind.
    """
    if not document.facts:
        return None
    if kind is None:
        kind = rng.choices(list(TURN_KINDS), weights=list(TURN_KINDS.values()))[0]
    made = _MAKERS[kind](rng, document)
    return None if made is None else Turn(kind, _FAMILY_OF_KIND[kind], *made)


def chance(document: GeneratedDocument, kind: str) -> float:
    """The share of right answers of somebody who knows every form and value but reads nothing.

    He picks one of the people, or one of the values of the attribute that is asked for; for
    answers with several values all must be right, which by guessing hardly ever happens.
    """
    attributes = {f.attribute for f in document.facts}
    people = len({f.person for f in document.facts})
    one_value = len(attributes) / len(document.facts)  # an attribute's values, on average
    return {
        "lookup": one_value,
        "use case": one_value,
        "reverse": 1 / people,
        "two-hop": one_value / people,
        "compare": one_value**2,
    }.get(kind, 0.0)


def draw_seed_turn(rng: random.Random, document: GeneratedDocument) -> Turn | None:
    """Draws a seed prompt as the question and a fitting first message as the answer: bot A."""
    family = rng.choice(FAMILIES)
    message = draw_turn(rng, document, rng.choice(_KINDS_OF_FAMILY[family]))
    if message is None:
        return None
    return Turn("ask", family, rng.choice(SEED_PROMPTS[family]), message.question)


def fact_stream(rng: random.Random, num_statements: int) -> list[tuple[str, str]]:
    """Statements about a few people, repeated in random wording: dense exercise in recall.

    Returns:
      (statement, value) pairs; value is empty where the fact is stated for the first time, so a
      trainer can put its loss on the words that can be known.
    """
    people = _draw_people(rng, rng.randrange(3, 9))
    facts = [(name, a, v) for name, values in people for a, v in values.items()]
    facts = rng.sample(facts, min(len(facts), rng.randrange(4, 20)))
    seen: set[tuple[str, str, str]] = set()
    stream = []
    for _ in range(num_statements):
        fact = rng.choice(facts)
        name, attribute, value = fact
        template = rng.choice((_BY_NAME[attribute].answer, _BY_NAME[attribute].reverse_answer))
        known = (value if template == _BY_NAME[attribute].answer else name) if fact in seen else ""
        stream.append((template.format(N=name, V=value), known))
        seen.add(fact)
    return stream
