"""Where a training row should look: supervision of a few attention heads by the ground truth.

To answer from a text a model must learn, with no hint but the right words, that the end of a
statement has to know its thing, its noun and its value, that an answer has to find that end, and
that the words of the value are copied from there. The generator knows all these places, so training
tells seven heads where to look; what they do with it, and everything else, is learned as usual,
and the result is a plain Llama. Takes a document with its ground truth and the places of its
tokens; hands on pointers, each from one token to those that its head should see.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Sequence

from experiments.embedded_world.world.answering import Answers
from experiments.embedded_world.world.asking import Turn
from experiments.embedded_world.world.schema import (
    GeneratedDocument,
    Listing,
    Statement,
)

# Groups of pointers. The end of a statement, or the place before a word that an answer takes from
# the text, looks at the statement's own thing, noun and first word of the value; where two values
# are compared, at the other one too.
THING, NOUN, VALUE, OTHER = 0, 1, 2, 3
# An answer finds the end of the statement in the text, and the word itself ...
FIND, COPY = 4, 5
# ... and what decides how it goes on: whether a claim is true, whether a list has more.
CHECK = 6
NAMES = ("thing", "noun", "value", "other", "find", "copy", "check")
NOTHING = (0,)  # where FIND and CHECK look if nothing is to be found: at the row's first token
GROUPS = len(NAMES)
MOST_KEYS = 8  # of a pointer; names are shorter

Offsets = Sequence[tuple[int, int]]  # characters [start, end) of each token


@dataclasses.dataclass(frozen=True)
class Pointer:
    """Token `query` should look at `keys`, all alike."""

    group: int
    query: int
    keys: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text within a row, with the characters of its tokens; `shift` is the index of the first."""

    text: str
    offsets: Offsets
    shift: int

    def tokens(self, start: int, length: int) -> tuple[int, ...]:
        """The tokens that show the characters from `start`, none where it is negative."""
        if start < 0:
            return ()
        begins, ends = self._edges
        first, behind = bisect.bisect_right(ends, start), bisect.bisect_left(begins, start + length)
        return tuple(range(self.shift + first, self.shift + behind))

    @functools.cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        return [begin for begin, _ in self.offsets], [end for _, end in self.offsets]

    def find(self, words: str, start: int = 0, end: int | None = None) -> int:
        """Where `words` begin, as words of their own and in any case; -1 for nowhere."""
        pattern = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)
        match = pattern.search(self.text, start, len(self.text) if end is None else end)
        return match.start() if match else -1


@dataclasses.dataclass(frozen=True)
class Mention:
    """The tokens of one statement in the text; some may be missing."""

    statement: Statement
    thing: tuple[int, ...]
    noun: tuple[int, ...]
    value: tuple[int, ...]
    end: int


def mentions(document: GeneratedDocument, text: Passage) -> list[Mention]:
    """Every statement of a document by its tokens."""
    found = []
    for s in document.statements:
        start, end = s.span.start, s.span.end
        value = text.find(s.value, start, end)
        if s.place == "table":
            noun = text.find(s.noun, s.span.intro, start)
            end = value + len(s.value) + 2  # " |"
        else:
            noun = text.find(s.noun, start, end)
        thing = text.find(s.thing, start, end)
        if thing < 0:
            thing = text.text.lower().rfind(s.thing.lower(), s.span.intro, start)
        if value < 0 or thing < 0:
            continue
        found.append(
            Mention(
                s,
                text.tokens(thing, len(s.thing)),
                text.tokens(noun, len(s.noun)),
                text.tokens(value, len(s.value)),
                text.tokens(end - 1, 1)[-1],
            )
        )
    return found


def _at_end(end: int, *parts: tuple[int, ...]) -> list[Pointer]:
    """What the end of a statement sees of it: thing, noun and the value's first word."""
    thing, noun, value = parts
    return [Pointer(THING, end, thing), Pointer(NOUN, end, noun), Pointer(VALUE, end, value[:1])]


def of_text(document: GeneratedDocument, text: Passage, found: Sequence[Mention]) -> list[Pointer]:
    """What the ends of the text's own statements and lists should see."""
    out = []
    for m in found:
        out += _at_end(m.end, m.thing, m.noun, m.value)
    for listing in document.listings:
        thing, first = _of_list(text, listing)
        out += _at_end(_list_end(text, listing), thing, (), first)
    return out


def of_turn(
    document: GeneratedDocument,
    turn: Turn,
    question: Passage,
    answer: Passage,
    text: Passage,
    found: Sequence[Mention],
) -> list[Pointer]:
    """Where the answer of a turn about a text should look."""
    out = of_answer(document, turn.facts, answer, found, question, turn.kind == "summary")
    if turn.kind == "absent":
        out += _of_absence(answer)
    elif turn.kind == "yes/no":
        out += _of_verdict(document, turn, question, answer)
    elif len(turn.facts) == 2 and turn.kind in ("compare", "order"):
        out += of_comparison([document.facts[f] for f in turn.facts], answer)
    elif not turn.facts:
        out += _of_passages(document, turn, question, answer, text)
    return out


def of_answer(
    document: GeneratedDocument,
    facts: Sequence[tuple[str, str]],
    answer: Passage,
    found: Sequence[Mention],
    question: Passage | None = None,
    is_summary: bool = False,
) -> list[Pointer]:
    """Where an answer should look for what it says of facts.

    Args:
      document: that it is about.
      facts: (thing, noun) that it rests on.
      answer: in its row.
      found: the text's statements.
      question: what names the thing and the noun, or the value; None if nobody asked.
      is_summary: which fact comes next stands in the text, not in the question.
    """
    answers, out = Answers(document), []
    for fact in facts:
        known = document.facts[fact]
        ends = [m for m in found if m.statement.value == known.value]
        ends = [m for m in ends if (m.statement.thing, m.statement.noun) == fact]
        place = _place(answers, known, answer.text)
        if not ends or place is None:
            continue
        *starts, backwards = place
        words = (known.thing, known.noun, known.value)
        thing, noun, value = (
            answer.tokens(at, len(w)) for at, w in zip(starts, words, strict=True)
        )
        if question is not None:
            asked = [question.tokens(question.find(w), len(w)) for w in words]
            asked[0 if backwards else 2] = ()  # that comes from the text
            for said, there in zip((thing, noun, value), asked, strict=True):
                out += _copied(said, [there])
            if noun and is_summary:
                out.append(Pointer(FIND, noun[0] - 1, _ends(ends)))
                out += _copied(noun, [m.noun for m in ends])
        taken = thing if backwards else value
        if not taken:
            continue
        before = taken[0] - 1
        out += [Pointer(NOUN, before, noun), Pointer(FIND, before, _ends(ends))]
        out.append(
            Pointer(VALUE, before, value[:1]) if backwards else Pointer(THING, before, thing)
        )
        out += _copied(taken, [m.thing if backwards else m.value for m in ends])
    return out


def _of_absence(answer: Passage) -> list[Pointer]:
    """Before "not in the text": looking for the statement ends nowhere."""
    match = re.fullmatch(r"(.*)'s (.*) is not in the text\.", answer.text)
    if not match:
        raise ValueError(f"not the answer to a question without one: {answer.text!r}")
    before = answer.tokens(match.end(2) + 1, 2)[-1]  # "is"
    thing, noun = (answer.tokens(match.start(i), len(match[i])) for i in (1, 2))
    return [
        Pointer(THING, before, thing), Pointer(NOUN, before, noun), Pointer(FIND, before, NOTHING)
    ]  # fmt: skip


def _of_verdict(
    document: GeneratedDocument, turn: Turn, question: Passage, answer: Passage
) -> list[Pointer]:
    """The word before "yes" or "no" sees what is claimed and, if it is the same, what is so."""
    (fact,) = (document.facts[f] for f in turn.facts)
    verdict = answer.text.rindex(", so ") + len(", so ")
    before = answer.tokens(verdict, 2)[0] - 1
    said = answer.tokens(answer.text.rfind(fact.value, 0, verdict), len(fact.value))[:1]
    same = answer.text.endswith("yes.")
    others = {s.value for s in document.statements if s.noun == fact.noun} - {fact.value}
    claims = [fact.value] if same else sorted(others)
    claimed = [question.tokens(question.find(v), len(v)) for v in claims]
    out = [Pointer(VALUE, before, said), Pointer(CHECK, before, said if same else NOTHING)]
    return out + [Pointer(OTHER, before, at[:1]) for at in claimed if at]


def of_comparison(facts: Sequence[Statement], answer: Passage) -> list[Pointer]:
    """Two statements and who has more: that name is taken from the statement with its value."""
    at, parts = 0, []
    for fact in facts:
        start = answer.find(fact.thing, at)
        noun = answer.find(fact.noun, start + len(fact.thing))
        value = answer.find(fact.value, noun)
        at = value + len(fact.value)
        words = ((start, fact.thing), (noun, fact.noun), (value, fact.value))
        parts.append([answer.tokens(a, len(w)) for a, w in words])
        parts[-1].append(answer.tokens(at, 1)[-1:])  # the full stop
    out = [pointer for *said, (end,) in parts for pointer in _at_end(end, *said)]
    taken = {f.thing: answer.tokens(answer.find(f.thing, at), len(f.thing)) for f in facts}
    winner, chosen = next((i, taken[f.thing]) for i, f in enumerate(facts) if taken[f.thing])
    before = chosen[0] - 1
    (_, noun, first, _), (_, _, second, _) = parts
    out += [Pointer(NOUN, before, noun), Pointer(VALUE, before, first[:1])]
    out += [Pointer(OTHER, before, second[:1]), Pointer(FIND, before, parts[winner][3])]
    return out + _copied(chosen, [parts[winner][0]])


def _subject(listing: Listing) -> str:
    """The words of a list and of a question for it that tell which list it is."""
    if listing.numbered:  # "steps to test the alarm", of "To test the alarm:"
        return listing.what.split(" ", 2)[2]
    # "topics of the urgent status"; "topics of the text", of "The topics are"
    return listing.of_group[1] if listing.of_group else listing.what.split(" ", 1)[0]


def _of_list(text: Passage, listing: Listing) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of a list's subject, and of its first item's first word that tells."""
    of, start, end = _subject(listing), listing.span.start, listing.span.end
    thing = text.find(of, start, end)
    first = text.find(listing.items[0], start, end)
    first += _article(listing.items[0])
    return text.tokens(thing, len(of)), text.tokens(first, 1)


def _article(item: str) -> int:
    return len("the ") if item.startswith("the ") else 0


def _list_end(text: Passage, listing: Listing) -> int:
    return text.tokens(listing.span.end - 1, 1)[-1]


def _of_passages(
    document: GeneratedDocument, turn: Turn, question: Passage, answer: Passage, text: Passage
) -> list[Pointer]:
    """Where a list, a count or a quotation looks for the words that it takes from the text."""
    answers = Answers(document)
    for note in document.quotations:
        if answers.quote(note) == turn.answer:
            said = answer.tokens(answer.find(note.words), len(note.words))
            there = text.find(note.words, note.span.start)
            return _copied(said, [text.tokens(there, len(note.words))])
    for listing in document.listings:
        asked = listing.what in turn.question or not listing.of_group  # two may have the same items
        if asked and turn.answer in (answers.listing(listing), answers.count(listing)):
            return _of_items(listing, question, answer, text)
    return []


def _of_items(listing: Listing, question: Passage, answer: Passage, text: Passage) -> list[Pointer]:
    """The first item is found by what the list is of, each other by the one before it."""
    of = _subject(listing)
    out, last = [], question.tokens(question.find(of), len(of))
    at, there = 0, listing.span.start
    for i, item in enumerate(listing.items):
        at, there = answer.find(item, at), text.find(item, there)
        if at < 0 or there < 0:
            return out
        said, source = answer.tokens(at, len(item)), text.tokens(there, len(item))
        out += _copied(said, [source])
        begin = answer.tokens(at + _article(item), 1)[0]
        for before in {said[0] - 1, begin - 1}:
            out.append(Pointer(THING, before, last))
            if i == 0:
                out.append(Pointer(FIND, before, (_list_end(text, listing),)))
        at, there = at + len(item), there + len(item)
        last = said[-1:]
        behind = text.tokens(there, 1)
        out.append(Pointer(CHECK, said[-1], behind))
    total = answer.find("That is ", at)
    if total >= 0:  # how many: the last number again
        number = str(len(listing.items))
        numbers = re.finditer(rf"(?<!\w){number} ", answer.text[:total])
        places = [answer.tokens(m.start(), len(number)) for m in numbers]
        out += _copied(answer.tokens(total + len("That is "), len(number)), places)
    return out


def _copied(said: tuple[int, ...], sources: Sequence[tuple[int, ...]]) -> list[Pointer]:
    """Each of these tokens comes from its like in the sources that have as many."""
    fitting = [s for s in sources if len(s) == len(said)]
    return [Pointer(COPY, at - 1, tuple(s[i] for s in fitting)) for i, at in enumerate(said)]


def _ends(found: Sequence[Mention]) -> tuple[int, ...]:
    return tuple(sorted({m.end for m in found}))


def _place(answers: Answers, fact: Statement, answer: str) -> tuple[int, int, int, bool] | None:
    """Where an answer has thing, noun (-1 if unnamed) and value, and whether the value is first."""
    said = answers.direct(fact).removesuffix(".")
    at = answer.find(said)
    if at >= 0:
        value = at + len(said) - len(fact.value)
        thing = answer.find(fact.thing, at)
        return thing, answer.find(fact.noun, thing + len(fact.thing), value), value, False
    said = answers.backwards(fact).removesuffix(".")
    at = answer.find(said)
    if at >= 0:
        thing = at + len(said) - len(fact.thing)
        if not said.endswith(fact.thing):
            return None
        return thing, answer.find(fact.noun, at + len(fact.value), thing), at, True
    for between in (" ", ": ", '": "', " is "):
        at = answer.find(f"{fact.noun}{between}{fact.value}")
        if at >= 0:
            thing = answer.rfind(fact.thing, 0, at)
            return (thing, at, at + len(fact.noun) + len(between), False) if thing >= 0 else None
    return None
