"""Tokenizers and chat templates of the five families against transformers and sentencepiece."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")
import sentencepiece
import tokenizers

from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import ChatTemplate, Message, context_text
from cartridges_jax.models.sources.folder import FolderSource
from cartridges_jax.models.template_text import TEMPLATE_DATE
from cartridges_jax.models.tokenizer import SentencePieceTokenizer
from cartridges_jax.models.tokenizer_files import load_tokenizer
from tests.families import FAMILIES, make_sentencepiece, write_tokenizer

SPECIALS = sorted({token for family in FAMILIES.values() for token in family.special})
PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(SPECIALS),
    st.sampled_from(
        ["👩🏽‍🚀", "e\u0301", "\u0000\u001b", "\r\n", "  ", "\n\n", "▁", "Ünï", "12345"]
    ),
    st.sampled_from(["<think>", "</think>", "[INST]", "\ue000", "\ue001user\ue001", "<<SYS>>"]),
)
ANY_TEXT = st.lists(PIECES, max_size=6).map("".join)
# What a person or a model writes: no look-alikes (transformers would parse them), no blanks around.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
PLAIN = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
PLAIN = PLAIN.filter(lambda t: not any(s in t for s in (*SPECIALS, "think>", "▁", "<0x")))


@pytest.fixture(params=FAMILIES, scope="module")
def both(request, tmp_path_factory):
    """Ours and theirs of one family."""
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, family)
    tokenizer = load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return family, ChatTemplate(tokenizer, FolderSource(folder).chat_template()), theirs


@pytest.fixture(scope="module")
def splitting(both):
    """Theirs, to which all that the template writes is special: it splits `<think>` too."""
    _, template, theirs = both
    theirs = copy.deepcopy(theirs)
    written = template.tokenizer.reserved & theirs.get_vocab().keys()
    theirs.add_tokens([tokenizers.AddedToken(t, special=True) for t in sorted(written)])
    return theirs


def turns(*contents):
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)]


def system(content):
    return Message(role="system", content=content)


def render_theirs(theirs, messages, **options):
    return theirs.apply_chat_template(
        messages, tokenize=True, return_dict=False, date_string=TEMPLATE_DATE, **options
    )


@given(text=ANY_TEXT)
@settings(max_examples=1000, deadline=None)
def test_text_is_encoded_as_transformers_splits_special_tokens(both, splitting, text):
    _, template, _ = both
    theirs = splitting
    ids = template.tokenizer.encode(text)
    assert ids == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert not set(ids) & set(template.tokenizer.special_tokens.values()) - {
        template.tokenizer.special_tokens.get("<unk>")
    }


@given(text=ANY_TEXT)
@settings(max_examples=1000, deadline=None)
def test_sentencepiece_is_itself(text):
    ids = OURS.encode(text)
    assert ids == THEIRS.encode(text)
    assert OURS.decode(ids) == THEIRS.decode(ids)


OURS = SentencePieceTokenizer(make_sentencepiece())
THEIRS = sentencepiece.SentencePieceProcessor(model_proto=make_sentencepiece())


def test_sentencepiece_opens_only_the_first_text_with_a_space():
    assert OURS.encode("the text") == OURS.encode(" the text", after="text")
    assert OURS.encode("the text", after="special") == OURS.encode("the text", after="text")
    legacy = SentencePieceTokenizer(make_sentencepiece(), legacy=True)
    assert legacy.encode("the text", after="special") == legacy.encode("the text")
    assert legacy.encode("the text", after="text") == OURS.encode("the text", after="text")
    assert legacy.fingerprint != OURS.fingerprint


@given(title=PLAIN, text=PLAIN, question=PLAIN, answer=PLAIN)
@settings(max_examples=100, deadline=None)
def test_a_conversation_is_what_transformers_renders(both, title, text, question, answer):
    family, template, theirs = both
    context = template.render_context(title, text)
    head = [system(context_text(title, text))]
    prompt = template.render_turns(turns(question), add_generation_prompt=True)
    whole = render_theirs(theirs, [*head, *turns(question)], add_generation_prompt=True)
    assert context + prompt == whole
    if family.own_system_turn:  # Mistral's moves the text to the last question, or drops it
        full = template.render_suffix(turns(question, answer))
        assert context + full.token_ids.tolist() == render_theirs(
            theirs, [*head, *turns(question, answer)]
        )
    without = template.render(turns(question, answer, question), add_generation_prompt=True)
    assert without == render_theirs(
        theirs, turns(question, answer, question), add_generation_prompt=True
    )


@given(question=PLAIN, answer=PLAIN)
@settings(max_examples=50, deadline=None)
def test_answers_follow_the_generation_prompt_and_hold_their_end(both, question, answer):
    """What is marked is what a model would have to write: the answer, up to its closing token."""
    family, template, _ = both
    suffix = template.render_suffix(turns(question, answer))
    marked = suffix.token_ids[suffix.is_answer].tolist()
    end = template.tokenizer.id_of(family.eos)
    assert marked[-1] == end == template.answer_end_id
    text = template.tokenizer.decode(marked)
    assert text.removeprefix("<think>\n\n</think>\n\n").strip() == template.tokenizer.decode(
        template.tokenizer.encode(answer)
    )
    prompt = template.render_turns(turns(question), add_generation_prompt=True)
    before = suffix.token_ids[: suffix.is_answer.argmax()].tolist()
    assert before == prompt


@given(text=ANY_TEXT, question=ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_no_content_forges_a_special_token(both, text, question):
    _, template, _ = both
    wanted = template.render([system("x"), *turns("y")], add_generation_prompt=True)
    got = template.render([system(text), *turns(question)], add_generation_prompt=True)
    special = set(template.tokenizer.special_tokens.values())
    special.discard(template.tokenizer.special_tokens.get("<unk>"))
    assert [i for i in got if i in special] == [i for i in wanted if i in special]


def test_the_empty_context_is_what_the_template_says_by_itself(both):
    family, template, theirs = both
    whole = render_theirs(theirs, turns("Hello there"))
    suffix = template.render_suffix(turns("Hello there")).token_ids.tolist()
    assert template.empty_context() + suffix == whole
    says = template.tokenizer.decode(template.empty_context())
    assert ("You are Qwen" in says) == (family is FAMILIES["qwen 2.5"])
    assert (TEMPLATE_DATE in says) == (family is FAMILIES["llama 3"])


def test_context_is_head_text_closing(both):
    _, template, _ = both
    context = template.render_context("", "Some text.")
    head, closing = template.context_head(), template.context_closing()
    assert context[: len(head) - 1] == head[:-1]  # the last of the head may merge with the text
    assert closing == context[len(context) - len(closing) :]


def test_qwen3_thinking(tmp_path):
    """Past thoughts are stripped, the last one is part of the answer, the switch is passed on."""
    family = FAMILIES["qwen 3"]
    write_tokenizer(tmp_path, family)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    thinking = "<think>\nLet me see.\n</think>\n\nIn Oslo."
    messages = turns("Where?", thinking, "Since when?", thinking)
    template = ChatTemplate(tokenizer, FolderSource(tmp_path).chat_template())
    suffix = template.render_suffix(messages)
    assert template.render(messages) == render_theirs(theirs, messages)
    assert tokenizer.decode(suffix.token_ids.tolist()).count("Let me see") == 1
    assert "Let me see" in tokenizer.decode(suffix.token_ids[suffix.is_answer].tolist())
    quiet = ChatTemplate(
        tokenizer, FolderSource(tmp_path).chat_template(), {"enable_thinking": False}
    )
    question = turns("Where?")
    assert quiet.render(question, add_generation_prompt=True) == render_theirs(
        theirs, question, add_generation_prompt=True, enable_thinking=False
    )
    answered = quiet.render_suffix(turns("Where?", "In Oslo."))
    marked = answered.token_ids[answered.is_answer].tolist()
    assert tokenizer.decode(marked) == "In Oslo."


def test_a_conversation_that_a_template_rejects(both):
    family, template, _ = both
    twice = [*turns("one"), *turns("two")]
    if family.own_system_turn:
        template.render_suffix(twice)
    else:
        with pytest.raises(InputError, match="roles must alternate"):
            template.render_suffix(twice)
