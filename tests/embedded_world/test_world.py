"""The procedural texts tell the truth about themselves, and so do questions and seed prompts."""

import dataclasses
import itertools
import json
import random
import re

import pytest

from experiments.embedded_world.prompts import SEED_PROMPTS, draw_focus
from experiments.embedded_world.world import asking, genres, seeding, wordings
from experiments.embedded_world.world.noise import COMMON, strewn
from experiments.embedded_world.world.schema import GeneratedDocument
from experiments.embedded_world.world.understanding import understand
from experiments.embedded_world.world.writing import write_document

GENRES = [*genres.GENRES.values(), genres.random_genre(random.Random(1))]


def made(genre, seed=0, split="test", size=5000, fillers=1.0) -> GeneratedDocument:
    split = "test" if genre is genres.MUSEUM else split
    return write_document(random.Random(f"{genre.name} {seed}"), genre, size, split, fillers)


@pytest.mark.parametrize("split", ["train", "noisy", "validation", "test"])
@pytest.mark.parametrize("genre", GENRES, ids=lambda g: g.name)
def test_facts_stand_where_they_say(genre, split):
    for seed in range(10):
        document = made(genre, seed, split)
        assert document == made(genre, seed, split), "a seed gives one document"
        assert document.statements
        for s in document.statements:
            assert s.value.lower() in document.text[s.span.start : s.span.end].lower()
            assert s.thing.lower() in document.text[s.span.intro : s.span.end].lower()
        for listing in document.listings:
            where = document.text[listing.span.start : listing.span.end]
            assert all(item in where for item in listing.items)
        for quotation in document.quotations:
            assert quotation.words in document.text[quotation.span.start : quotation.span.end]


@pytest.mark.parametrize("genre", GENRES, ids=lambda g: g.name)
def test_nothing_is_left_for_the_name_of_a_placeholder(genre):
    for seed in range(20):
        document = made(genre, seed)
        assert not re.search(r"\{[A-Za-z]+\}", document.text)
        assert " she." not in document.text and "Many know she" not in document.text


@pytest.mark.parametrize("genre", GENRES, ids=lambda g: g.name)
def test_a_value_leads_back_to_one_thing(genre):
    document = made(genre, size=20_000)
    owners: dict[tuple[str, str], set[str]] = {}
    for (thing, noun), fact in document.facts.items():
        if genre.attribute(noun).kind != "group":
            owners.setdefault((noun, fact.value), set()).add(thing)
    assert all(len(things) == 1 for things in owners.values())


def test_a_correction_overrules_what_was_said_before():
    corrected = 0
    for seed in range(30):
        document = made(genres.PERSONNEL, seed)
        for (thing, noun), fact in document.facts.items():
            stated = [s for s in document.statements if (s.thing, s.noun) == (thing, noun)]
            assert fact == max(stated, key=lambda s: s.span.start)
            if len({s.value for s in stated}) > 1:
                corrected += 1
                assert fact.place == "update"
                turn = asking.draw_turn(random.Random(0), document, "direct", fact)
                assert turn is not None and turn.kind == "update" and fact.value in turn.answer
    assert corrected > 5


@pytest.mark.parametrize("genre", GENRES, ids=lambda g: g.name)
def test_a_window_keeps_only_what_it_shows(genre):
    document = made(genre, size=8000)
    window = document.window(900, 3500)
    assert window.text == document.text[900:3500]
    assert 0 < len(window.statements) < len(document.statements)
    for s in window.statements:
        assert s.value.lower() in window.text[s.span.start : s.span.end].lower()
        assert s.thing.lower() in window.text[s.span.intro : s.span.end].lower()
    for thing, noun in window.unstated:
        fact = document.facts.get((thing, noun))
        if fact is not None:  # stated elsewhere, and not even in part in the window
            spans = [s.span for s in document.statements if (s.thing, s.noun) == (thing, noun)]
            assert all(s.end <= 900 or s.start >= 3500 for s in spans)


@pytest.mark.parametrize("kind", asking.KINDS)
def test_answers_rest_on_the_text(kind):
    """Every thing and value of an answer is in the text, and belongs together there."""
    drawn = 0
    for genre in GENRES:
        for seed in range(6):
            document = made(genre, seed)
            rng = random.Random(seed)
            for _ in range(20):
                turn = asking.draw_turn(rng, document, kind)
                if turn is None:
                    continue
                drawn += 1
                assert turn.kind == kind
                if kind == "absent":
                    assert turn.answer.endswith("is not in the text.") and not turn.facts
                elif kind in ("listing", "count", "quote") or not turn.facts:
                    lines = re.split(r"\n|, ", turn.answer)
                    words = [re.sub(r"^(- |\d+\.? )|\. That is \d+\.$", "", x) for x in lines]
                    known = [w.strip('"').rpartition(': "')[2] for w in words]
                    assert all(w in document.text or "After " in w for w in known), turn
                else:
                    for fact in turn.facts:
                        assert document.facts[fact].value.lower() in turn.answer.lower()
                        name = fact[0].lower()
                        assert name in turn.question.lower() + turn.answer.lower()
    assert drawn > 20


def test_what_came_next_is_the_next_in_time():
    told = 0
    for seed in range(12):
        document = made(genres.CHRONICLE, seed, size=8000)
        year = {
            thing: int(f.value) for (thing, noun), f in document.facts.items() if noun == "year"
        }
        rng = random.Random(seed)
        for _ in range(20):
            turn = asking.draw_turn(rng, document, "order")
            match = turn and re.fullmatch(r"After the (.*) came the (.*)\.", turn.answer)
            if match and year.keys() >= {*match.groups()}:
                before, after = match.groups()
                assert before in turn.question and year[before] <= year[after]
                between = [y for y in year.values() if year[before] < y < year[after]]
                assert not between
                told += 1
    assert told > 20


def test_conclusions_are_right():
    for seed in range(30):
        document = made(genres.REPORT, seed, size=8000)
        rng = random.Random(seed)
        for kind in ("compare", "order"):
            turn = asking.draw_turn(rng, document, kind)
            if turn is None:
                continue
            numbers = [int(document.facts[f].value.split()[0]) for f in turn.facts]
            low = re.search(r"The (lower|earlier) is", turn.answer)
            wanted = turn.facts[numbers.index((min if low else max)(numbers))][0]
            assert turn.answer.endswith(f"is the {wanted}.")
        turn = asking.draw_turn(rng, document, "yes/no")
        assert turn is not None
        [fact] = turn.facts
        asked = document.facts[fact].value in turn.question
        assert turn.answer.endswith("so yes." if asked else "so no.")
        turn = asking.draw_turn(rng, document, "count")
        if turn is not None:
            listed = asking.draw_turn(rng, document, "listing")
            assert listed is not None
            assert turn.answer.endswith(f"That is {turn.answer.count(',') + 1}.")
        turn = asking.draw_turn(rng, document, "structure")
        if turn is not None and " JSON" in turn.question:
            entry = json.loads(turn.answer)
            assert all(
                entry[noun] == document.facts[thing, noun].value for thing, noun in turn.facts
            )


def test_what_is_not_in_the_text_is_nowhere():
    for genre in GENRES:
        document = made(genre, 3)
        rng = random.Random(0)
        for _ in range(50):
            turn = asking.draw_turn(rng, document, "absent")
            assert turn is not None
            for (thing, noun), _fact in document.facts.items():
                assert not turn.answer.lower().startswith(
                    f"{genre.named(thing)}'s {noun} is".lower()
                )


def test_wordings_of_tests_are_not_in_training():
    for genre in genres.TRAINING:
        for attribute in genre.attributes:
            assert not set(attribute.statements) & set(attribute.unseen)
            assert not set(attribute.questions) & set(attribute.unseen_questions)
    groups = [w for w in vars(wordings).values() if isinstance(w, wordings.Wordings)]
    assert len(groups) > 10
    for group in groups:
        together = [wording for part in group for wording in set(part)]
        assert len(together) == len(set(together)), group
    assert genres.MUSEUM not in genres.TRAINING


def test_words_strewn_in_leave_names_and_meaning():
    """Placeholders stay as they are, and so do words between them where these tell the fact."""
    rng = random.Random(0)
    groups = [w.train for w in vars(wordings).values() if isinstance(w, wordings.Wordings)]
    for wording in itertools.chain(*groups, wordings.CODE_STATEMENTS):
        for _ in range(20):
            told = strewn(rng, wording)
            placeholders = re.findall(r"\{\w+\}", wording)
            assert re.findall(r"\{\w+\}", told) == placeholders
            if placeholders and ("{noun}" not in wording or "{second}" in wording):
                assert wording[wording.index("{") : wording.rindex("}") + 1] in told
    assert not {"no", "not", "now", "never", "nothing", "without"} & set(COMMON)
    told = {strewn(rng, "The {noun} of {s} is {V}.") for _ in range(400)}
    assert len(told) > 60


def test_messages_for_seed_prompts_have_no_strewn_words():
    rng = random.Random(0)
    document = made(genres.PERSONNEL, split="noisy")
    plain = dataclasses.replace(document, split="train")
    for seed in range(200):
        turn = seeding.draw_seed_turn(random.Random(seed), document)
        assert turn == seeding.draw_seed_turn(random.Random(seed), plain)
    asked = {asking.draw_turn(rng, document, "lookup").question for _ in range(200)}
    assert any(understand(document, question) is None for question in asked), "these do"


def test_seed_prompts_show_a_sentence_and_ask_about_it():
    near = 0
    for seed in range(200):
        rng = random.Random(seed)
        document = made(genres.TRAINING[seed % len(genres.TRAINING)], seed, "train")
        turn = seeding.draw_seed_turn(rng, document)
        assert turn is not None and turn.kind == "ask"
        focus = turn.question.partition("\n\n")[2]
        general = turn.question in {p for prompts in SEED_PROMPTS.values() for p in prompts}
        assert general or (focus in document.text and 0 < len(focus) <= 200)
        assert "{" not in turn.answer
        near += any(document.facts[f].value in focus for f in turn.facts)
    assert near > 50


def test_a_focus_is_one_sentence_or_line():
    text = 'First. "Second," he said.\n| aaaa | bbbb |\n1.\n\nThe 3.14 of it?Yes'
    found = {text[slice(*draw_focus(random.Random(i), text))] for i in range(200)}
    assert found == {'"Second," he said.', "The 3.14 of it?Yes", "| aaaa | bbbb |"}
    assert draw_focus(random.Random(0), "") == (0, 0)
    assert draw_focus(random.Random(0), "x" * 500)[1] == 200


def test_facts_are_as_thin_as_prose():
    """At 3 sentences without a fact for each with one; tables are denser."""
    for genre in GENRES:
        documents = [made(genre, seed, fillers=3.0, size=7000) for seed in range(10)]
        a_fact = sum(len(d.text) for d in documents) / sum(len(d.facts) for d in documents)
        assert 50 < a_fact < 400, (genre.name, a_fact)
        for document in documents:
            assert 2500 < len(document.text) < 16_000, (genre.name, len(document.text))


def test_things_can_be_told_apart():
    document = made(genres.CHRONICLE, size=20_000)
    years = [int(document.values(thing)["year"]) for thing in document.things]
    assert len(set(document.things)) == len(document.things)
    corrected = {s.thing for s in document.statements if s.place == "update" and s.noun == "year"}
    assert not corrected and years == sorted(years)


@pytest.mark.parametrize("genre", GENRES, ids=lambda g: g.name)
def test_every_question_of_the_world_is_understood(genre):
    for seed in range(4):
        document = made(genre, seed)
        rng = random.Random(seed)
        for _ in range(200):
            turn = asking.draw_turn(rng, document)
            if turn is None or turn.kind == "absent":
                continue
            read = understand(document, turn.question)
            assert read is not None, turn
            assert read.answer == turn.answer, (turn, read)


def test_what_the_text_does_not_answer_is_not_understood():
    document = made(genres.PERSONNEL, 1)
    thing, stranger = document.things[0], "Nobody Atall"
    for question in (
        f"What is the city of {stranger}?",
        f"What is the shoe size of {thing}?",
        f"What is {thing}",
        "Who works as a sorcerer?",
        "List the ghosts of the text.",
        "",
    ):
        assert understand(document, question) is None
