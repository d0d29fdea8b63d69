"""The shipped model and tokenizer, the rows they were trained on, and the start weights."""

import collections
import json
import random

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridges_jax.attention import Mask, attention
from cartridges_jax.evaluation.arms import answer, control_arms
from cartridges_jax.evaluation.scoring import is_right
from cartridges_jax.models.chat_template import ChatTemplate, Message
from cartridges_jax.models.tokenizer import JsonTokenizer, SentencePieceTokenizer
from cartridges_jax.sharding import TOKENS_BT, local_mesh, place
from experiments.embedded_world import training_data
from experiments.embedded_world.documents import MODEL, embedded_questions, held_out_document
from experiments.embedded_world.induction_init import induction_initialize
from experiments.embedded_world.pretrain import model_config
from experiments.embedded_world.tokenizer_training import (
    BEGIN,
    CHAT_TEMPLATE,
    END,
    to_tokenizer_json,
    train_tokenizer,
)
from experiments.embedded_world.world import asking, genres, seeding
from experiments.embedded_world.world.writing import write_document


def _sentencepiece():
    """The tokenizer as SentencePiece made it, and the same for the tokenizers library."""
    model = (MODEL / "tokenizer.model").read_bytes()
    source = to_tokenizer_json(model)
    return SentencePieceTokenizer(model, legacy=True), JsonTokenizer(source, BEGIN, END)


SENTENCEPIECE, JSON = _sentencepiece()


@pytest.fixture
def template():
    """What training renders rows with."""
    return ChatTemplate(SENTENCEPIECE, CHAT_TEMPLATE)


@pytest.mark.parametrize("phase", training_data.FROM_NOTHING, ids=lambda p: str(p.row_length))
def test_training_rows_depend_on_name_and_index_alone(template, phase):
    a, b = (training_data.make_row(phase, "a", 5, template) for _ in range(2))
    other = training_data.make_row(phase, "a", 6, template)
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
        assert all(known in said for _, said, known in told)
    assert all(0 < drawn[kind] < 800 for kind in (*asking.KINDS, "seed")), drawn


def test_targets_of_a_row_are_its_own_next_tokens(template):
    row = training_data.make_row(training_data.FROM_NOTHING[2], "a", 3, template)
    places = len(row["index"])
    assert places == len(row["token_ids"]) // 2
    used = np.flatnonzero(row["weight"])
    at = row["index"][used]
    assert len(np.unique(at)) == len(at) > 0.5 * places
    np.testing.assert_array_equal(row["target"][used], row["token_ids"][at + 1])
    np.testing.assert_array_equal(row["place"][at], used)
    assert np.sum(row["place"] < places) == len(used)
    assert training_data.WEIGHT_ANSWER in row["weight"]


def test_answers_of_held_out_rows_are_where_they_say(template):
    tokenizer = template.tokenizer
    [row] = training_data.held_out_rows(1, 1024, template)
    assert len(row.answers) > 5
    for span in row.answers:
        assert row.token_ids[span.end - 1] == tokenizer.id_of("<|end|>")
        assert row.token_ids[span.start - 1] == tokenizer.id_of("<|assistant|>")
        expected = training_data.WEIGHT_ASKED if span.kind == "ask" else 1.0
        assert set(row.weights[span.start : span.end]) == {expected}


def test_the_tokenizer_is_made_again_bit_for_bit():
    assert train_tokenizer(1, 200) == train_tokenizer(1, 200)


@given(st.text(max_size=80) | st.text("ab cZ.,\n\t-é漢<|>▁19", max_size=30), st.integers(0, 10_000))
@settings(max_examples=300, deadline=None)
def test_the_json_tokenizer_is_the_sentencepiece_one(text, seed):
    rng = random.Random(seed)
    words = write_document(rng, genres.random_genre(rng), 300, "noisy", 1.0).text
    for said in (text, words):
        for after in ("nothing", "special", "text"):
            assert JSON.encode(said, after=after) == SENTENCEPIECE.encode(said, after=after)
        assert JSON.decode(JSON.encode(said)) == SENTENCEPIECE.decode(SENTENCEPIECE.encode(said))


def test_the_shipped_tokenizer_is_the_one_made_here(trained):
    shipped = (MODEL / "tokenizer.json").read_text()
    made = to_tokenizer_json((MODEL / "tokenizer.model").read_bytes())
    assert json.loads(shipped) == json.loads(made)
    assert trained.tokenizer.special_tokens == SENTENCEPIECE.special_tokens


def test_transformers_gives_the_same_answers(trained):
    """The folder as it is, by Hugging Face's own classes: same prompts, same greedy answers."""
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(MODEL))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MODEL))
    document, made = held_out_document("transformers", 300)
    for question in embedded_questions(made, "transformers", 12)[:8]:
        turns = [
            {"role": "system", "content": f"{document.title}\n\n{document.text}"},
            {"role": "user", "content": question.question},
        ]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        messages = [Message(**turn) for turn in turns]
        assert trained.template.render(messages, add_generation_prompt=True) == ids
        [ours] = trained.generate([ids], max_new_tokens=24)
        with torch.no_grad():
            said = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
        assert ours.token_ids == said[0, len(ids) :].tolist()


def test_the_tokenizer_knows_the_words_of_its_world(template):
    """Common names, most years and nouns are a token each; anything else still round-trips."""
    tokenizer = template.tokenizer
    for text in ("Helen", "1985", "birth", "room", "serial"):
        assert len(tokenizer.encode(text)) == 1, text
    for text in ("QX-7042-bf /h/1ac", "naïve 漢字 🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_start_weights_hold_induction_heads(trained):
    """In a repeated random sequence, layer 1 looks right behind the former occurrence."""
    rng = np.random.default_rng(0)
    half = rng.integers(300, 2000, 60)
    with jax.set_mesh(local_mesh()):
        model = induction_initialize(model_config(trained.tokenizer), 0)
        tokens = np.tile(np.concatenate([half, half]).astype(np.int32), (1, 1))

        def place_it(x):
            return place(trained.mesh, x, TOKENS_BT)

        x = model.embedding(place_it(tokens), model.dtype)
        turn = model.turn(place_it(np.arange(120, dtype=np.int32)[None]))
        first, second = (jax.tree.map(lambda w, i=i: w[i], model.blocks) for i in (0, 1))
        q, k, v = first.qkv(x, turn)
        scale = model.config.head_dim**-0.5
        seen = attention(q, k, v, Mask(place_it(0 * tokens)), scale=scale)
        q, k, _ = second.qkv(first.mlp(first.attention_output(x, seen)), turn)
        scores = np.einsum("tnh,snh->nts", np.asarray(q[0]), np.asarray(k[0]))
    scores = np.where(np.tril(np.ones((120, 120), bool)), scores, -np.inf)
    behind = np.mean(
        [[s[t].argmax() == t - 59 for t in range(70, 120)] for s in scores[:3]], axis=1
    )
    assert behind.max() > 0.25  # by chance: below 0.02


def test_lookup_in_context(trained):
    """A small edition of experiments/embedded_scores.py: 3 documents, some 34 questions."""
    right = []
    for name in ("a", "b", "c"):
        document, made = held_out_document(f"test {name}", 500)
        questions = embedded_questions(made, name, 40, shares={"lookup": 1.0})
        [full] = [
            arm for arm in control_arms(trained, [document], 32, 100) if arm.name == "full KV"
        ]
        given = answer(trained, full, [q.question for q in questions], 40)
        right += [is_right(g, q.answers, q.parser) for g, q in zip(given, questions, strict=True)]
    assert np.mean(right) >= 0.85
