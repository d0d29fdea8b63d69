"""The procedural documents tell the truth about themselves, and the shipped model reads them."""

import collections
import random
import re

import jax
import numpy as np
import pytest

from cartridges_jax.embedded import documents, training_data
from cartridges_jax.embedded.induction_init import induction_initialize
from cartridges_jax.embedded.tokenizer_training import CHAT_TEMPLATE, train_tokenizer
from cartridges_jax.embedded.world import asking, seeding
from cartridges_jax.evaluation.arms import answer, control_arms
from cartridges_jax.evaluation.scoring import is_right
from cartridges_jax.evaluation.suites import embedded_questions, held_out_document
from cartridges_jax.models.chat_template import ChatTemplate
from cartridges_jax.models.tokenizer import SentencePieceTokenizer
from cartridges_jax.sharding import TOKENS_BT, local_mesh, place


def test_facts_stand_where_they_say():
    for seed in range(20):
        document = documents.make_document(random.Random(seed), 6)
        for fact in document.facts:
            sentence = document.text[fact.start : fact.end]
            assert fact.value in sentence
            assert fact.person in document.text[fact.intro : fact.end]


def test_values_are_unique_in_a_document():
    document = documents.make_document(random.Random(0), 20)
    pairs = [(f.attribute, f.value) for f in document.facts]
    assert len(set(pairs)) == len(pairs)


def test_a_window_keeps_only_what_it_shows():
    document = documents.make_document(random.Random(1), 8)
    window = document.window(333, 900)
    assert window.text == document.text[333:900]
    assert 0 < len(window.facts) < len(document.facts)
    for fact in window.facts:
        assert fact.intro >= 0 and fact.value in window.text[fact.start : fact.end]
        assert fact.person in window.text


@pytest.mark.parametrize("kind", documents.TURN_KINDS)
def test_turns_can_be_answered_from_the_text(kind):
    """Every name and value in an answer is a fact about a person whom the answer or question names.

    So an answer that mixes people up, or tells a value of somebody else, fails.
    """
    rng = random.Random(2)
    document = documents.make_document(rng, 6)
    for _ in range(40):
        turn = documents.draw_turn(rng, document, kind)
        assert turn is not None and turn.kind == kind
        told = f"{turn.question} {turn.answer}"
        people = {f.person for f in document.facts if f.person in told}
        values = [f for f in document.facts if re.search(rf"\b{f.value}\b", turn.answer)]
        assert values and {f.person for f in values} == people
        assert len(people) == (2 if kind == "compare" else 1)
        assert "{" not in turn.question


def test_lookups_answer_what_they_ask():
    """The right value, worked out here from the sentence that states it."""
    rng = random.Random(4)
    document = documents.make_document(rng, 6)
    words = {
        "live": "city", "home city": "city", "born": "birth year", "birth year": "birth year",
        "room": "room", "desk": "room", "medication": "medication", "take": "medication",
        "job": "job", "trade": "job", "work as": "job", "employ": "employer", "firm": "employer",
    }  # fmt: skip
    for _ in range(60):
        turn = documents.draw_turn(rng, document, "lookup")
        asked = {attribute for word, attribute in words.items() if word in turn.question}
        assert len(asked) == 1, turn.question
        [fact] = [f for f in document.facts if f.person in turn.question and f.attribute in asked]
        sentence = document.text[fact.start : fact.end]
        assert fact.value in sentence and fact.value in turn.answer


@pytest.fixture(scope="module")
def next_template():
    """Of the model that the training code makes next; the shipped weights have an older one."""
    tokenizer = SentencePieceTokenizer(train_tokenizer(0), legacy=True)
    return ChatTemplate(tokenizer, CHAT_TEMPLATE)


@pytest.mark.parametrize("phase", range(len(training_data.PHASES)))
def test_training_rows_depend_on_seed_and_index_alone(next_template, phase):
    a, b = (training_data.make_row(0, phase, 5, next_template) for _ in range(2))
    other = training_data.make_row(0, phase, 6, next_template)
    assert (a["token_ids"] != other["token_ids"]).any()
    for name, values in a.items():
        np.testing.assert_array_equal(values, b[name])


def test_every_kind_of_question_is_drawn_or_not_from_any_text():
    """Small windows, and genres of two kinds of facts, give no ground for many kinds."""
    rng = random.Random(0)
    drawn = collections.Counter()
    for _ in range(800):
        document = training_data._document_of_size(rng, rng.choice((60, 120, 300)))
        drawn.update(k for k in asking.KINDS if asking.draw_turn(rng, document, k))
        drawn["seed"] += seeding.draw_seed_turn(rng, document) is not None
        told = asking.recital(rng, document)
        assert len(told) == len(document.facts)
        assert all(known in said for said, known in told)
    assert all(0 < drawn[kind] < 800 for kind in (*asking.KINDS, "seed")), drawn


def test_targets_of_a_row_are_its_own_next_tokens(next_template):
    row = training_data.make_row(0, 2, 3, next_template)
    places = len(row["index"])
    assert places == len(row["token_ids"]) // 2
    used = np.flatnonzero(row["weight"])
    at = row["index"][used]
    assert len(np.unique(at)) == len(at) > 0.5 * places
    np.testing.assert_array_equal(row["target"][used], row["token_ids"][at + 1])
    np.testing.assert_array_equal(row["place"][at], used)
    assert np.sum(row["place"] < places) == len(used)
    assert training_data.WEIGHT_ANSWER in row["weight"]


def test_answers_of_held_out_rows_are_where_they_say(next_template):
    tokenizer = next_template.tokenizer
    [row] = training_data.held_out_rows(1, 1024, next_template)
    assert len(row.answers) > 5
    for span in row.answers:
        assert row.token_ids[span.end - 1] == tokenizer.special_id("<|end|>")
        assert row.token_ids[span.start - 1] == tokenizer.special_id("<|assistant|>")
        expected = training_data.WEIGHT_ASKED if span.kind == "ask" else 1.0
        assert set(row.weights[span.start : span.end]) == {expected}


def test_the_tokenizer_is_made_again_bit_for_bit():
    assert train_tokenizer(1, 200) == train_tokenizer(1, 200)


def test_the_tokenizer_knows_the_words_of_its_world(next_template):
    """Common names, years and nouns are a token each; anything else still round-trips."""
    tokenizer = next_template.tokenizer
    for text in ("Helen", "1967", "birth", "room", "serial"):
        assert len(tokenizer.encode(text)) == 1, text
    for text in ("QX-7042-bf /h/1ac", "naïve 漢字 🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_start_weights_hold_induction_heads(embedded):
    """In a repeated random sequence, layer 1 looks right behind the former occurrence."""
    rng = np.random.default_rng(0)
    half = rng.integers(300, 2000, 60)
    with jax.set_mesh(local_mesh()):
        model = induction_initialize(embedded.config, 0)
        tokens = np.tile(np.concatenate([half, half]).astype(np.int32), (1, 1))

        def place_it(x):
            return place(embedded.mesh, x, TOKENS_BT)

        x = model.embedding(place_it(tokens), model.dtype)
        turn = model.turn(place_it(np.arange(120, dtype=np.int32)[None]))
        first, second = (jax.tree.map(lambda w, i=i: w[i], model.blocks) for i in (0, 1))
        q, k, v = first.qkv(x, turn)
        from cartridges_jax.attention import attention

        seen = attention(q, k, v, segment_start=place_it(0 * tokens), scale=32**-0.5)
        q, k, _ = second.qkv(first.mlp(first.attention_output(x, seen)), turn)
        scores = np.einsum("tnh,snh->nts", np.asarray(q[0]), np.asarray(k[0])) * 32**-0.5
    scores = np.where(np.tril(np.ones((120, 120), bool)), scores, -np.inf)
    behind = np.mean(
        [[s[t].argmax() == t - 59 for t in range(70, 120)] for s in scores[:3]], axis=1
    )
    assert behind.max() > 0.25  # by chance: below 0.02


def test_lookup_in_context(embedded):
    """A small edition of experiments/embedded_scores.py: 3 documents, 120 questions."""
    right = []
    for name in ("a", "b", "c"):
        document, made = held_out_document(f"test {name}", 500)
        questions = embedded_questions(made, name, 40, shares={"lookup": 1.0})
        [full] = [
            arm for arm in control_arms(embedded, [document], 32, 100) if arm.name == "full KV"
        ]
        given = answer(embedded, full, [q.question for q in questions], 40)
        right += [is_right(g, q.answers, q.parser) for g, q in zip(given, questions, strict=True)]
    assert np.mean(right) >= 0.9
