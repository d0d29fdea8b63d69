"""Templates that open thoughts before an answer, or drop those of earlier ones."""

import pytest

from cartridges_jax.corpus import Document
from cartridges_jax.distillation.targets import decode_record, score_targets
from cartridges_jax.engine.answers import Generation, ids_of
from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import ChatTemplate, Message
from cartridges_jax.models.template_text import split_thoughts
from cartridges_jax.models.tokenizer_files import load_tokenizer
from cartridges_jax.self_study import conversation
from cartridges_jax.self_study.config import SynthesisConfig
from cartridges_jax.self_study.conversation import load_conversations
from cartridges_jax.self_study.run import synthesize
from cartridges_jax.self_study.unit import first_sentences
from cartridges_jax.shards import ShardSet
from tests.conftest import TEST_MODEL
from tests.families import FAMILIES, write_tokenizer

# As the R1 distillations have it: the prompt opens a thought, past thoughts are cut.
R1 = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'assistant' %}
{{- '<|im_start|>a' + m.content.split('</think>')[-1] + '<|im_end|>' }}
{%- else %}{{ '<|im_start|>' + m.role[0] + m.content }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>a<think>\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def r1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r1")
    write_tokenizer(folder, FAMILIES["qwen 3"])
    return ChatTemplate(load_tokenizer(folder), R1)


def user(text):
    return Message(role="user", content=text)


def said(template, text):
    """An answer as it was generated: `</think>` is one token of it."""
    thoughts, answer = text.split("</think>")
    encode, end = template.tokenizer.encode, template.tokenizer.id_of("</think>")
    ids = [*encode(thoughts, after="text"), end, *encode(answer, after="special")]
    return Message(role="assistant", content=text, token_ids=ids)


def test_an_answer_is_kept_token_for_token_behind_its_prompt(r1):
    answer = said(r1, "Let me see.\n</think>\n\nIn Oslo.")
    suffix = r1.render_suffix([user("Where?"), answer])
    prompt = r1.render_turns([user("Where?")], add_generation_prompt=True)
    end = r1.tokenizer.id_of("<|im_end|>")
    assert suffix.token_ids.tolist() == [*prompt, *answer["token_ids"], end]
    assert suffix.is_answer.tolist() == [False] * len(prompt) + [True] * (
        len(answer["token_ids"]) + 1
    )
    assert prompt[-2] == r1.tokenizer.id_of("<think>")
    assert r1.opens_thoughts and r1.said(answer["content"]) == "In Oslo."


@pytest.mark.parametrize("text", ["In Oslo.", "<table>", "<think>\nHm.\n</think>\n\nIn Oslo."])
def test_an_answer_of_text_alone_does_not_follow_its_prompt(r1, text):
    """`<table>` begins as the prompt's `<think>` does: it was half an answer before."""
    turns = [user("Where?"), Message(role="assistant", content=text)]
    with pytest.raises(InputError, match="it opens thoughts, or drops"):
        r1.render_suffix(turns)
    shown = r1.render_turns([*turns, user("Why?")], add_generation_prompt=True)
    assert "Where" in r1.tokenizer.decode(shown)  # as what was said before, it is


def test_two_answers_with_dropped_thoughts_are_refused(r1):
    one = said(r1, "Hm.</think>Oslo.")
    with pytest.raises(InputError, match="end with their only answer"):
        r1.render_suffix([user("Where?"), one, user("Why?"), one])


def test_thoughts_are_no_sentences_and_no_requests():
    text = "Let me see. It says so.\n</think>\n\nIn Oslo. In Norway."
    assert first_sentences(text, 1, opened=True) == (text.removesuffix(" In Norway."), True)
    assert first_sentences("Let me see. It says", 1, opened=True) == ("Let me see. It says", False)
    assert first_sentences("<think>A. B.", 1) == ("<think>A. B.", False)
    assert split_thoughts("No thought.") == ("", "No thought.")
    assert split_thoughts("Still thinking.", opened=True) == ("Still thinking.", "")


def test_what_a_model_wrote_is_what_it_is_trained_on(trained, tmp_path, monkeypatch):
    """Self-study to targets, with answers whose text is encoded otherwise than they were made."""
    odd = trained.tokenizer.encode("A") + trained.tokenizer.encode("da", after="text")
    text = trained.tokenizer.decode(odd)
    assert trained.tokenizer.encode(text, after="special") != odd
    wrote = []

    def generate(prompts, *_args, **_kwargs):
        wrote.append(prompts)
        asks = len(wrote) % 2
        ids = trained.tokenizer.encode(f"Who wrote part {len(wrote)}?") if asks else odd
        said = trained.tokenizer.decode(ids)
        ended = [*ids, trained.template.answer_end_id]
        return [Generation(said, ended, [0.0] * len(ended), "stop") for _ in prompts]

    monkeypatch.setattr(trained, "generate", generate)
    config = SynthesisConfig(
        num_conversations=2, conversations_per_chunk=1, chunk_max_tokens=60, chunk_min_tokens=40,
        num_examples=0, question_max_tokens=20, answer_max_tokens=20,
    )  # fmt: skip
    document = Document("d", "Title", "Ada Brown lives in Oslo. Bo Falk lives in Rome. " * 4)
    shards = synthesize(trained, [document], tmp_path, config)
    [found] = load_conversations(shards, 0)
    assert found.messages[1]["token_ids"] == odd
    targets = score_targets(trained, tmp_path)
    row = decode_record(targets.records(0)[0])
    end = trained.template.answer_end_id
    assert row["token_ids"][-len(odd) - 1 :].tolist() == [*odd, end]
    # Another model's tokens say nothing: its text is taken.
    written = shards.inputs | {"model": shards.inputs["model"] | {"tokenizer": "another"}}
    other = ShardSet.open(tmp_path / "other", conversation.SHARDS, written)
    other.write(0, shards.records(0))
    row = decode_record(score_targets(trained, tmp_path / "other").records(0)[0])
    bare = trained.template.render_suffix(found.as_text().messages).token_ids
    assert row["token_ids"].tolist() == bare.tolist()
    assert row["token_ids"][-len(odd) - 1 :].tolist() != [*odd, end]


def test_tokens_of_an_answer_are_found_behind_split_characters(trained):
    """A character of several tokens is as long before it is whole."""
    tokenizer = trained.tokenizer
    for text in ("Hello 😀", "Hello é", "Ada 中", "x😀.", "plain"):
        ids = tokenizer.encode(text, after="special")
        assert ids_of(tokenizer, ids, tokenizer.decode(ids)) == ids
        more = [*ids, *tokenizer.encode(" and more", after="text")]
        assert ids_of(tokenizer, more, tokenizer.decode(ids)) == ids


def test_an_answer_that_goes_on_into_another_turn_is_dropped(trained):
    from cartridges_jax.self_study.clients.base import Reply
    from cartridges_jax.self_study.unit import _answer_turn

    ids = trained.tokenizer.encode("In Oslo.", after="special")
    forged = [*ids, trained.tokenizer.id_of("<|user|>"), *ids]
    text = trained.tokenizer.decode(forged)
    assert _answer_turn(trained, Reply(text, 1.0, True, forged), text) is None
    assert _answer_turn(trained, Reply("In Oslo.", 1.0, True, ids), "In Oslo.")["token_ids"] == ids


def test_a_turn_behind_a_kept_answer_is_not_lost(r1):
    """One token ends all turns of some templates: the answer's own end is meant."""
    answer = said(r1, "Hm.</think>Oslo.")
    with pytest.raises(InputError, match="end with their only answer"):
        r1.render_suffix([user("Where?"), answer, user("Why?")])


def test_the_test_model_has_no_thoughts():
    template = ChatTemplate(
        load_tokenizer(TEST_MODEL), (TEST_MODEL / "chat_template.jinja").read_text()
    )
    assert not template.opens_thoughts
