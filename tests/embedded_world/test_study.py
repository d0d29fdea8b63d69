"""Self-study: whole units, resumed without loss, independent of how far it ran before."""

import collections
import dataclasses
import random
import re

import pytest

from cartridges_jax.corpus import Document
from cartridges_jax.errors import InputError
from cartridges_jax.self_study.conversation import load_conversations
from experiments.embedded_world.prompts import (
    FAMILIES,
    FOCUSED_PROMPTS,
    RECALL,
    SEED_PROMPTS,
    SKIMMED,
    all_focuses,
    draw_recall,
    draw_seed_prompts,
    skim,
)
from experiments.embedded_world.study import (
    StudyConfig,
    _holds,
    _keep,
    _Told,
    synthesize,
)
from tests.conftest import document_named

CONFIG = StudyConfig(num_conversations=24, conversations_per_chunk=8, chunk_max_tokens=200)
KEEPING = dataclasses.replace(CONFIG, kept_share=0.4)
ALL_KINDS = dataclasses.replace(KEEPING, skimmed_share=0.25, recall_share=0.25)


@pytest.fixture(scope="module")
def document():
    return document_named("synthesize")


def everything(shards):
    return [c for index in sorted(shards.units) for c in load_conversations(shards, index)]


def test_conversations_are_whole(trained, document, tmp_path):
    shards = synthesize(trained, [document], tmp_path, CONFIG)
    found = everything(shards)
    assert len(found) == shards.num_records >= 24
    assert len({c.id for c in found}) == len(found)
    assert len({c.chunk for c in found}) == len(shards.units) > 1
    for c in found:
        assert [m["role"] for m in c.messages] == ["user", "assistant"]
        assert c.seed_prompt in SEED_PROMPTS[c.family]
        assert c.chunk.text in document.text
    assert set(collections.Counter(c.family for c in found)) == set(FAMILIES)


def test_a_document_that_fits_the_window_is_shown_whole(trained, tmp_path):
    document = document_named("synthesize long")
    whole = dataclasses.replace(
        CONFIG, num_conversations=1, chunk_min_tokens=0, chunk_max_tokens=0, seed_prompts="focused"
    )
    found = everything(synthesize(trained, [document], tmp_path / "whole", whole))
    assert {c.chunk.text for c in found} == {document.text.strip()}
    length = len(trained.tokenizer.encode(document.text))
    window = trained.config.window
    for width, question, words in (
        (length, window - length, "lower chunk_max_tokens"),
        (0, window, "a chunk of any tokens"),
    ):
        change = {"chunk_min_tokens": width, "chunk_max_tokens": width}
        wide = dataclasses.replace(whole, question_max_tokens=question, **change)
        with pytest.raises(InputError, match=words):
            synthesize(trained, [document], tmp_path / "wide", wide)


def test_focused_prompts_show_a_sentence_of_the_chunk(trained, document, tmp_path):
    focused = dataclasses.replace(CONFIG, seed_prompts="focused")
    for c in everything(synthesize(trained, [document], tmp_path, focused)):
        prompt, _, focus = c.seed_prompt.partition("\n\n")
        assert prompt in FOCUSED_PROMPTS[c.family]
        assert focus and all(line in c.chunk.text for line in focus.split("\n"))


def test_unsure_conversations_are_dropped(trained, document, tmp_path):
    every = synthesize(trained, [document], tmp_path / "every", CONFIG)
    said = {str(c.messages) for c in load_conversations(every, 0)}
    for setting, least in (("min_question_confidence", 0.75), ("min_answer_confidence", 0.999)):
        sure = StudyConfig(**(vars(CONFIG) | {setting: least}))
        some = synthesize(trained, [document], tmp_path / setting, sure)
        kept = {str(c.messages) for c in load_conversations(some, 0)}
        assert kept < said


def test_what_only_the_text_can_answer_is_kept(trained, document, tmp_path):
    every = synthesize(trained, [document], tmp_path / "every", CONFIG)
    some = synthesize(trained, [document], tmp_path / "some", KEEPING)
    title = trained.read(trained.template.render_context(document.title, ""))
    dropped = []
    for i in set(every.units) & set(some.units):
        told, kept = load_conversations(every, i), load_conversations(some, i)
        assert len(kept) <= 3 and {str(c.messages) for c in kept} <= {str(c.messages) for c in told}
        asked = [c.messages[0]["content"] for c in told]
        alone = trained.generate(asked, title, max_new_tokens=96)
        for c, a in zip(told, alone, strict=True):
            answer = set(re.findall(r"\w+", c.messages[1]["content"]))
            if not answer - set(re.findall(r"\w+", f"{c.messages[0]['content']} {a.text}")):
                assert c.messages not in [k.messages for k in kept]
                dropped.append(c)
    assert dropped


def test_telling_conversations_are_drawn_more_often():
    told = [
        _Told("question", "seed", question, "A B C") for question in ("much", "little", "C B A")
    ]
    alone = ["", "A B", ""]
    # An answer without a word that is not in its question is never kept, and no question twice.
    config = StudyConfig(conversations_per_chunk=18, kept_share=0.5)
    kept = _keep(random.Random(0), told * 2, alone * 2, config)
    assert sorted(one.question for one in kept) == ["little", "much"]
    one = dataclasses.replace(config, kept_share=1 / 18)
    firsts = [_keep(random.Random(i), told, alone, one)[0].question for i in range(2000)]
    assert 0.72 < firsts.count("much") / 2000 < 0.78  # three new words against one


def test_of_skimmed_questions_those_are_kept_that_the_title_alone_answers_alike():
    told = [_Told(SKIMMED, "", f"question {i}", "C" * i + " no") for i in range(8)]
    told += [_Told("question", "", f"read {i}", "A B C") for i in range(8)]
    config = StudyConfig(conversations_per_chunk=16, kept_share=0.25, skimmed_share=0.5)
    alone = ["no"] * 16
    for i in range(20):
        kept = _keep(random.Random(i), told, alone, config)
        assert len(kept) == config.most_per_chunk == 4
        skimmed = [one.question for one in kept if one.family == SKIMMED]
        assert len(skimmed) == 2 and "question 0" in skimmed  # the only one without a new word


def test_some_questions_are_asked_by_who_has_skimmed_the_text(trained, document, tmp_path):
    config = dataclasses.replace(CONFIG, skimmed_share=0.5, kept_share=0.5)
    told = everything(synthesize(trained, [document], tmp_path, config))
    skimmed = [c for c in told if c.family == SKIMMED]
    units = collections.Counter(c.id.split("-")[0] for c in skimmed)
    assert skimmed and max(units.values()) <= 2
    # Much of it the text does not say; of what the others ask next to nothing is kept that is so.
    refusals = [c.family == SKIMMED for c in told if "not in the text" in c.messages[1]["content"]]
    assert sum(refusals) > len(skimmed) / 4 and sum(refusals) > 0.8 * len(refusals)
    for c in skimmed:  # the answers are those of the chunk, which training shows the teacher
        assert c.chunk.text in document.text
        assert c.seed_prompt in SEED_PROMPTS["question"]


def test_sentences_are_asked_for_by_their_first_words():
    text = 'Ada says: "The odd wind sold one wall."\nThe odd wind is cold today.\nToo short.\n'
    text += "Ben lives in the north of it.\n"
    asked = draw_recall(random.Random(0), text, 9, text)
    assert {sentence for _, sentence in asked} == {"Ben lives in the north of it."}
    assert '"Ben lives in"' in asked[0][0]  # two sentences begin with "The odd wind"
    first = text.partition("\n")[0]
    [(message, sentence)] = draw_recall(random.Random(0), first, 9, first)
    assert '"The odd wind"' in message and sentence == 'The odd wind sold one wall."'
    assert draw_recall(random.Random(0), first, 9, text) == []  # unique here, but not in the text
    assert draw_recall(random.Random(0), text, 0, text) == []


def test_an_answer_holds_a_sentence_word_for_word():
    sentence = 'The odd wind sold one wall."'
    assert _holds('Ada: "The odd wind\nsold one wall."', sentence)
    assert not _holds("The odd wind sold a wall.", sentence)
    assert not _holds("Bathe odd wind sold one wall.", sentence)
    assert not _holds("The odd wind sold one walls.", sentence)


def test_sentences_are_asked_for_and_learned_word_for_word(trained, document, tmp_path):
    config = dataclasses.replace(CONFIG, recall_share=0.5, kept_share=0.5, question_share=1.0)
    told = everything(synthesize(trained, [document], tmp_path, config))
    recalled = [c for c in told if c.family == RECALL]
    units = collections.Counter(c.id.split("-")[0] for c in recalled)
    assert recalled and max(units.values()) <= 2  # half of the four of eight that are asked
    assert max(collections.Counter(c.id.split("-")[0] for c in told).values()) <= 4
    # Most sentences of a register the model does not quote; those answers are dropped.
    assert all(_holds(c.messages[1]["content"], c.seed_prompt) for c in recalled)


def test_a_focus_is_shown_under_what_its_paragraph_begins_with():
    text = (
        "# Title\n\ndef sum_entry(size):\n    x = 1 + size\n    yield move_entry(x)\n\n| a | b |\n"
    )
    text += "| first | 1 |\n| other | 2 |\n\nOne thing is this. Another is that one."
    assert all_focuses(text) == [
        "def sum_entry(size):",
        "def sum_entry(size):\nx = 1 + size",
        "def sum_entry(size):\nyield move_entry(x)",
        "| first | 1 |",
        "| first | 1 |\n| other | 2 |",
        "One thing is this.",
        "One thing is this.\nAnother is that one.",
    ]
    long = "word " * 99 + "word"
    assert all_focuses(f"{long}\n{long}")[1] == f"{long[:100]}\n{long[:200]}"
    far = "A first line.\n" + "Many lines without a break.\n" * 100
    assert all_focuses(far)[-1] == "Many lines without a break."
    assert all_focuses("") == [""]
    rng, prompts = random.Random(0), set(all_focuses(text))
    drawn = {p.partition("\n\n")[2] for _, p in draw_seed_prompts(rng, 60, 0.2, text)}
    assert drawn == prompts


def test_who_skims_sees_whole_sentences_in_their_order():
    text = "The first one is here. The second one, too.\n\n- the third one\n- the fourth one\n"
    sentences = ["The first one is here.", "The second one, too.", "- the third one"]
    sentences += ["- the fourth one"]
    rng = random.Random(0)
    seen = set()
    for _ in range(50):
        lines = skim(rng, text, 2).split("\n")
        assert lines == sorted(lines, key=sentences.index) and len(lines) == 2
        seen |= set(lines)
    assert seen == set(sentences)
    assert skim(rng, text, 0) == "" and skim(rng, text, 9).split("\n") == sentences


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_the_share_of_questions(share):
    seeds = draw_seed_prompts(random.Random(0), 20, share)
    counts = collections.Counter(family for family, _ in seeds)
    assert counts["question"] == share * 20
    assert {counts[f] for f in FAMILIES if f != "question"} == {(20 - counts["question"]) / 4}


@pytest.mark.parametrize("config", [CONFIG, ALL_KINDS])
def test_a_longer_run_begins_like_a_shorter_one(trained, document, tmp_path, config):
    less, more = (dataclasses.replace(config, num_conversations=n) for n in (10, 18))
    few = synthesize(trained, [document], tmp_path / "few", less)
    begun = [c.id for c in everything(few)]
    grown = synthesize(trained, [document], tmp_path / "few", more)
    fresh = synthesize(trained, [document], tmp_path / "fresh", more)
    assert grown.fingerprint == fresh.fingerprint
    assert [c.id for c in everything(grown)][: len(begun)] == begun


def test_seeds_differ(trained, document, tmp_path):
    other = dataclasses.replace(CONFIG, seed=1)
    a = synthesize(trained, [document], tmp_path / "a", CONFIG)
    b = synthesize(trained, [document], tmp_path / "b", other)
    assert a.fingerprint != b.fingerprint


def test_a_folder_of_other_settings_is_refused(trained, document, tmp_path):
    synthesize(trained, [document], tmp_path, CONFIG)
    with pytest.raises(InputError, match="seed=0, now seed=1"):
        synthesize(trained, [document], tmp_path, dataclasses.replace(CONFIG, seed=1))
    with pytest.raises(InputError, match=r"corpus\[0\]"):
        synthesize(trained, [Document("x", "x", "Other text.")], tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_conversations": 0}, "num_conversations must be above 0"),
        ({"chunk_min_tokens": 300}, "exceeds"),
        ({"chunk_max_tokens": 5000}, "lower chunk_max_tokens"),
        ({"answer_max_tokens": 1}, "num_examples, question_max_tokens"),
        ({"min_question_confidence": 1.0}, "min_answer_confidence"),
        ({"min_answer_confidence": 1.5}, "min_answer_confidence must be at most 1, got 1.5"),
        ({"skimmed_share": 0.6, "recall_share": 0.6}, "exceed 1 together"),
        ({"skimmed_share": 0.01}, "skimmed_share=0.01 with kept_share=1.0 keeps none"),
        ({"recall_share": 0.25, "kept_share": 0.1}, "recall_share=0.25 with kept_share=0.1 keeps"),
    ],
)
def test_settings_that_cannot_work_are_refused(trained, document, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        synthesize(trained, [document], tmp_path, StudyConfig(**(vars(CONFIG) | change)))
