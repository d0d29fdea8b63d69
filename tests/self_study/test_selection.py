"""What counts as a request: the filter knows no language."""

import pytest

from cartridges_jax.corpus import Chunk
from cartridges_jax.self_study import seeds
from cartridges_jax.self_study.selection import Selection, words

TEXT = "The Grey Heron was built in 1978. It carries 120 passengers, 14 cars, and who knows what?"


@pytest.fixture(params=[0, 5])
def selection(request):
    shown = seeds.EXAMPLE_PASSAGES[: request.param]
    return Selection.of(Chunk("d", "Handbook", TEXT, 0, 9), seeds.SEED_WORDS, shown)


@pytest.mark.parametrize(
    "message",
    [
        "When was the Grey Heron built?",
        'Can you list its cars as JSON? "Yes or no?"',
        "How many passengers may board? ",
        "\u00bfCu\u00e1ndo se construy\u00f3 el Grey Heron?",
        "Grey Heron \u306f\u3044\u3064\u5efa\u9020\u3055\u308c\u307e\u3057\u305f\u304b\uff1f",
        "\u0645\u062a\u0649 \u0628\u0646\u064a\u062a\u061f",
    ],
)
def test_requests_of_any_language_are_kept(selection, message):
    assert selection.why_not(message) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("The Grey Heron was built in 1978.", "no request"),
        ("Tell me more", "no request"),
        ("It carries 120 passengers, 14 cars, and who knows what?", "copy"),
        ("it  CARRIES 120 passengers, 14 cars, and who knows what?", "copy"),
        ("What does the following sentence say?", "speaks of the prompt"),
        ("Which question tests a reader?", "speaks of the prompt"),
    ],
)
def test_what_is_no_request_is_dropped_with_the_reason(selection, message, reason):
    assert selection.why_not(message) == reason


def test_names_of_the_examples_are_of_the_prompt():
    chunk = Chunk("d", "T", TEXT, 0, 9)
    shown = seeds.EXAMPLE_PASSAGES
    behind, without = (Selection.of(chunk, seeds.SEED_WORDS, texts) for texts in (shown, ()))
    assert behind.foreign - without.foreign == {
        "kestrel", "library", "quill", "1934", "elm", "lane", "3", "odell", "zoo", "linden",
        "orchestra", "friday",
    }  # fmt: skip
    for about_others in ("When does the Kestrel Library open?", "What happened in 1934?"):
        assert behind.why_not(about_others) == "speaks of the prompt"
        assert without.why_not(about_others) is None
    # A word of the chunk is none of the prompt's, whoever else has it.
    at_home = Selection.of(Chunk("d", "The Kestrel Library", TEXT, 0, 9), seeds.SEED_WORDS, shown)
    assert at_home.why_not("When was the Kestrel Library built?") is None


def test_words_that_give_a_prompt_away_stand_in_the_prompts():
    told = " ".join(
        seeds.seed_prompt(s, passage)
        for family in seeds.SEEDS.values()
        for s in family
        for passage in (None, "")
    )
    assert {w.removesuffix("s") for w in seeds.SEED_WORDS} <= words(told)


def test_every_example_is_a_request_by_the_same_rules():
    for family in seeds.FAMILIES:
        assert len(seeds.EXAMPLES[family]) == seeds.MOST_EXAMPLES
        for passage, request in zip(seeds.EXAMPLE_PASSAGES, seeds.EXAMPLES[family], strict=True):
            about = Selection.of(Chunk("d", "", passage, 0, 9), seeds.SEED_WORDS, ())
            assert about.why_not(request) is None, request
