"""Pointers lead where the ground truth says: checked by the words at both ends."""

import random
import re

import numpy as np
import pytest

from cartridges_jax.models.chat_template import ChatTemplate
from cartridges_jax.models.tokenizer import SentencePieceTokenizer
from experiments.embedded_world import pointers, training_data
from experiments.embedded_world.documents import MODEL
from experiments.embedded_world.tokenizer_training import CHAT_TEMPLATE
from experiments.embedded_world.world import asking, genres
from experiments.embedded_world.world.writing import write_document

TOKENIZER = SentencePieceTokenizer((MODEL / "tokenizer.model").read_bytes(), legacy=True)
TEMPLATE = ChatTemplate(TOKENIZER, CHAT_TEMPLATE)


def words(ids, at) -> str:
    return TOKENIZER.decode([ids[i] for i in at]).strip()


@pytest.mark.parametrize("genre", genres.TRAINING, ids=lambda g: g.name)
def test_statements_of_a_text_are_found_by_their_tokens(genre):
    for seed in range(6):
        document = write_document(random.Random(seed), genre, 1500, "noisy", 0.5)
        ids = TEMPLATE.render_context(document.title, document.text)
        text = training_data._text_passage(TEMPLATE, document)
        found = pointers.mentions(document, text)
        assert len(found) == len(document.statements)
        for m in found:
            s = m.statement
            assert s.thing.lower() in words(ids, m.thing).lower()
            assert s.value.lower() in words(ids, m.value).lower()
            assert not m.noun or s.noun.lower() in words(ids, m.noun).lower()
            assert m.end >= max(*m.thing, *m.value, *m.noun)  # it can see all of it


def test_answers_point_at_what_they_say():
    checked = dict.fromkeys(range(pointers.GROUPS), 0)
    for seed in range(60):
        rng = random.Random(seed)
        row = training_data.conversation_row(rng, TEMPLATE, 512, recital_share=0.5)
        made = row.finish(rng, 0)
        for group in range(pointers.GROUPS):
            for query, keys in zip(made["queries"][group], made["keys"][group], strict=True):
                if query < 0:
                    continue
                keys = keys[keys >= 0]
                assert len(keys) and keys.max() <= query, "nothing later can be seen"
                checked[group] += 1
                if group == pointers.COPY:
                    assert (made["token_ids"][keys] == made["token_ids"][query + 1]).all()
    assert all(count > 20 for count in checked.values()), checked


def by_words(text: str, shift: int) -> pointers.Passage:
    """A passage whose tokens are words and signs."""
    offsets = [m.span() for m in re.finditer(r"\w+|[^\w\s]", text)]
    return pointers.Passage(text, offsets, shift)


def test_the_place_before_a_value_looks_at_thing_noun_and_statement():
    checked = 0
    for seed in range(40):
        rng = random.Random(seed)
        document = write_document(rng, rng.choice(genres.TRAINING), 1500, "noisy", 0.5)
        turn = asking.draw_turn(rng, document, "lookup")
        if turn is None:
            continue
        text = by_words(document.text, 0)
        found = pointers.mentions(document, text)
        asked, answer = by_words(turn.question, 5000), by_words(turn.answer, 6000)
        made = pointers.of_turn(document, turn, asked, answer, text, found)
        [find] = [p for p in made if p.group == pointers.FIND]
        fact = document.facts[turn.facts[0]]
        told = [m for m in found if (m.statement.thing, m.statement.noun) == turn.facts[0]]
        assert set(find.keys) == {m.end for m in told if m.statement.value == fact.value}
        here = {p.group: p.keys for p in made if p.query == find.query}
        for group, said in ((pointers.THING, fact.thing), (pointers.NOUN, fact.noun)):
            if here[group]:
                first, last = (answer.offsets[i - 6000] for i in (here[group][0], here[group][-1]))
                assert turn.answer[first[0] : last[1]].lower() == said.lower()
        value = answer.offsets[find.query + 1 - 6000][0]
        assert turn.answer[value:].startswith(fact.value)
        checked += 1
    assert checked > 20


def test_rows_hold_them_in_fixed_places():
    phase = training_data.FROM_NOTHING[0]
    row = training_data.make_row(phase, "test", 3, TEMPLATE)
    queries, keys = row["queries"], row["keys"]
    assert queries.shape == (pointers.GROUPS, len(row["token_ids"]) // 4)
    assert keys.shape == (*queries.shape, pointers.MOST_KEYS)
    assert ((keys >= 0).any(-1) == (queries >= 0)).all() and (queries >= 0).sum() > 20
    assert (keys <= queries[..., None]).all()
    again = training_data.make_row(phase, "test", 3, TEMPLATE)
    np.testing.assert_array_equal(queries, again["queries"])
