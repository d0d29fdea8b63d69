"""Self-study: whole units, resumed without loss, independent of how far it ran before."""

import collections
import dataclasses
import random

import pytest

from cartridges_jax.corpus import Chunk, Document
from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study import seeds
from cartridges_jax.self_study.clients.local import LocalClient, LocalReader
from cartridges_jax.self_study.config import SynthesisConfig
from cartridges_jax.self_study.conversation import load_conversations
from cartridges_jax.self_study.run import synthesize
from cartridges_jax.self_study.unit import first_sentences
from tests.conftest import document_named
from tests.self_study.scripted import ScriptedClient

CONFIG = SynthesisConfig(
    num_conversations=24, conversations_per_chunk=8, chunk_min_tokens=128, chunk_max_tokens=200,
    question_max_tokens=64, answer_max_tokens=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def document():
    return document_named("synthesize")


def everything(shards):
    return [c for index in sorted(shards.units) for c in load_conversations(shards, index)]


def test_conversations_are_whole(trained, document, tmp_path):
    client = ScriptedClient()
    shards = synthesize(trained, [document], tmp_path, CONFIG, client)
    found = everything(shards)
    assert len(found) == shards.num_records >= 24
    assert len({c.id for c in found}) == len(found)
    assert len({c.chunk for c in found}) == len(shards.units) > 1
    for c in found:
        assert [m["role"] for m in c.messages] == ["user", "assistant"]
        assert c.chunk.text in document.text
        seed, _, passage = c.seed_prompt.partition("\n\n")
        assert seed in [s.format(this=seeds.PASSAGE) for s in seeds.SEEDS[c.family]]
        assert all(line in c.chunk.text for line in passage.split("\n"))
    # Bot B never sees a seed, bot A reads the same chunk.
    assert all(text == asked for text, asked in client.answered)
    assert {c.family for c in found} > {seeds.QUESTION}


def test_a_request_is_asked_once_in_a_unit_and_copies_are_dropped(trained, document, tmp_path):
    client = ScriptedClient(
        lambda i, seed: "Number one: who?" if i % 2 else seed.rpartition("\n")[2]
    )
    config = dataclasses.replace(CONFIG, num_conversations=2)
    shards = synthesize(trained, [document], tmp_path, config, client)
    assert [c.messages[0]["content"] for c in everything(shards)] == ["Number one: who?"] * 2
    assert shards.total("dropped") == 2 * 7


def test_examples_stand_before_every_seed(trained, document, tmp_path):
    client = ScriptedClient()
    config = dataclasses.replace(CONFIG, num_examples=3)
    synthesize(trained, [document], tmp_path, config, client)
    openings = [turns for turns in client.openings if turns]
    assert openings and all(len(turns) == 6 for turns in openings)
    assert all(not turns for turns in client.openings[1::2])  # bot B reads the chunk alone


def test_a_reader_goes_on_from_its_opening(trained):
    """Turns read once, behind the chunk, are those turns read in every request."""
    chunk = Chunk("d", "t", "Ada Brown lives in Oslo. Bo Falk lives in Rome.", 0, 9)
    opening = [Message(role="user", content="Who is Ada?"), Message(role="assistant", content="x")]
    request = [Message(role="user", content="Where does Bo Falk live?")]
    options = {"temperature": 0.0, "max_new_tokens": 24}
    client = LocalClient(trained)
    reader = client.read(chunk, opening)
    assert reader.num_opened > 4
    got = reader.complete([request], seeds=[1], **options)
    want = client.read(chunk).complete([[*opening, *request]], seeds=[1], **options)
    assert got[0] and want[0] and got[0].text == want[0].text
    assert abs(got[0].confidence - want[0].confidence) < 1e-5


def test_bot_b_stops_behind_its_sentences_and_says_the_same(trained, document, tmp_path):
    """Rows that end early change no conversation."""
    config = dataclasses.replace(CONFIG, answer_max_sentences=1, keep_unfinished=True)
    early = everything(synthesize(trained, [document], tmp_path / "early", config))

    class ToTheEnd(LocalReader):
        def complete(self, requests, **options):
            return super().complete(requests, **options | {"enough": None})

    class Patient(LocalClient):
        def read(self, chunk, opening=()):
            return ToTheEnd(**vars(super().read(chunk, opening)))

    client = Patient(trained)
    late = everything(synthesize(trained, [document], tmp_path / "late", config, client))
    assert early == late and early


def test_what_does_not_fit_the_window_gets_no_reply(trained, document):
    reader = LocalClient(trained).read(Chunk("d", "t", document.text, 0, 400))
    short, long = ([Message(role="user", content=w)] for w in ("Who is there?", "why " * 2000))
    options = {"temperature": 0.0, "max_new_tokens": 32}
    alone = reader.complete([short], seeds=[1], **options)
    assert alone[0] is not None
    assert reader.complete([long, short], seeds=[0, 1], **options) == [None, *alone]
    assert reader.complete([long], seeds=[0], **options) == [None]


def test_a_document_that_fits_the_window_is_shown_whole(trained, tmp_path):
    document = document_named("synthesize long")
    whole = dataclasses.replace(CONFIG, num_conversations=1, chunk_min_tokens=0, chunk_max_tokens=0)
    found = everything(synthesize(trained, [document], tmp_path / "a", whole, ScriptedClient()))
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


def test_unsure_conversations_are_dropped(trained, document, tmp_path):
    every = synthesize(trained, [document], tmp_path / "every", CONFIG, ScriptedClient())
    sure = dataclasses.replace(CONFIG, min_answer_confidence=0.75, num_conversations=8)
    some = synthesize(trained, [document], tmp_path / "some", sure, ScriptedClient())
    said, kept = ({str(c.messages) for c in load_conversations(s, 0)} for s in (every, some))
    assert kept < said


def test_unfinished_answers_are_kept_if_asked_for(trained, document, tmp_path):
    cut = ScriptedClient(finished=False)
    config = dataclasses.replace(CONFIG, keep_unfinished=True)
    assert synthesize(trained, [document], tmp_path / "kept", config, cut).num_records >= 24
    with pytest.raises(InputError, match="did not end within its tokens"):
        synthesize(trained, [document], tmp_path / "none", CONFIG, cut)


@pytest.mark.parametrize(
    ("text", "count", "want"),
    [
        ("It is Tom. He sails. He", 1, ("It is Tom.", True)),
        ("It is Tom. He sails. He", 2, ("It is Tom. He sails.", True)),
        ("It is Tom. He sails. He", 0, ("It is Tom. He sails. He", False)),
        ("It is Tom.\n", 1, ("It is Tom.", False)),
        ("It costs 4.50 crowns", 1, ("It costs 4.50 crowns", False)),
        ("Two boats:\n1. The Heron. It is large.\n2. The", 1, ("Two boats:\n1. The Heron.", True)),
        ("Certainly! Here is one. And", 1, ("Certainly! Here is one.", True)),
        ("船长是汤姆。他的船", 1, ("船长是汤姆。", True)),
    ],
)
def test_an_answer_is_cut_behind_a_sentence(text, count, want):
    assert first_sentences(text, count) == want


def test_a_cut_answer_need_not_have_ended(trained, document, tmp_path):
    config = dataclasses.replace(CONFIG, answer_max_sentences=1)
    found = synthesize(trained, [document], tmp_path, config, ScriptedClient(finished=False))
    answers = [c.messages[1]["content"] for c in everything(found)]
    assert answers and all(answer.endswith("?") for answer in answers)


def test_the_test_model_studies_a_document(trained, document, tmp_path):
    """It knows neither these seeds nor examples; what it asks in spite of that is kept."""
    config = dataclasses.replace(CONFIG, num_conversations=2, passages=False, question_share=1.0)
    found = everything(synthesize(trained, [document], tmp_path, config))
    assert all(c.messages[0]["content"].rstrip('". ').endswith("?") for c in found)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.85, 1.0])
def test_families_come_by_their_shares(share):
    counts = collections.Counter(seeds.family_of_unit(i, share) for i in range(400))
    assert abs(counts[seeds.QUESTION] - 400 * share) <= 1
    others = [counts[f] for f in seeds.FAMILIES if f != seeds.QUESTION]
    assert max(others) - min(others) <= 1


def test_all_passages_are_asked_about_before_one_is_again():
    text = "One thing is this. Another is that one.\nThe third thing is here. And a fourth one."
    drawn = seeds.draw_seed_prompts(random.Random(0), seeds.QUESTION, 9, text, 0)
    shown = collections.Counter(prompt.partition("\n\n")[2] for prompt in drawn)
    assert len(shown) == 4 and sorted(shown.values()) == [2, 2, 2, 3]


def test_a_line_is_shown_under_what_its_paragraph_begins_with():
    text = (
        "# Title\n\ndef sum_entry(size):\n    x = 1 + size\n    yield move_entry(x)\n\n| a | b |\n"
    )
    text += "| first | 1 |\n| other | 2 |\n\nOne thing is this. Another is that one."

    def passages(text):
        return [seeds.shown_passage(text, *span) for span in seeds.sentences(text)]

    assert passages(text) == [
        "def sum_entry(size):",
        "def sum_entry(size):\nx = 1 + size",
        "def sum_entry(size):\nyield move_entry(x)",
        "| first | 1 |",
        "| first | 1 |\n| other | 2 |",
        "One thing is this.",
        "Another is that one.",
    ]
    long = "word " * 99 + "word"
    assert passages(f"{long}\n{long}")[1] == f"{long[:100]}\n{long[:200]}"
    far = "A first line\n" + "Many lines without a break\n" * 100
    assert passages(far)[-1] == "Many lines without a break"
    assert passages("") == [""]


def test_a_longer_run_begins_like_a_shorter_one(trained, document, tmp_path):
    less, more = (dataclasses.replace(CONFIG, num_conversations=n) for n in (10, 18))
    few = synthesize(trained, [document], tmp_path / "few", less, ScriptedClient())
    begun = [c.id for c in everything(few)]
    grown = synthesize(trained, [document], tmp_path / "few", more, ScriptedClient())
    fresh = synthesize(trained, [document], tmp_path / "fresh", more, ScriptedClient())
    assert grown.fingerprint == fresh.fingerprint
    assert [c.id for c in everything(grown)][: len(begun)] == begun


def test_seeds_differ(trained, document, tmp_path):
    other = dataclasses.replace(CONFIG, seed=1)
    a = synthesize(trained, [document], tmp_path / "a", CONFIG, ScriptedClient())
    b = synthesize(trained, [document], tmp_path / "b", other, ScriptedClient())
    assert a.fingerprint != b.fingerprint


def test_a_folder_of_other_settings_is_refused(trained, document, tmp_path):
    synthesize(trained, [document], tmp_path, CONFIG, ScriptedClient())
    other = dataclasses.replace(CONFIG, seed=1)
    with pytest.raises(InputError, match="seed=0, now seed=1"):
        synthesize(trained, [document], tmp_path, other, ScriptedClient())
    with pytest.raises(InputError, match=r"corpus\[0\]"):
        text = Document("x", "x", "Other text.")
        synthesize(trained, [text], tmp_path, CONFIG, ScriptedClient())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_conversations": 0}, "num_conversations must be above 0"),
        ({"chunk_min_tokens": 300}, "exceeds"),
        ({"chunk_max_tokens": 5000}, "lower chunk_max_tokens"),
        ({"num_examples": 6}, "num_examples must be at most 5, got 6"),
        ({"min_answer_confidence": 1.0}, "min_answer_confidence"),
        ({"min_answer_confidence": 1.5}, "min_answer_confidence must be at most 1, got 1.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(trained, document, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        config = dataclasses.replace(CONFIG, **change)
        synthesize(trained, [document], tmp_path, config, ScriptedClient())
