"""Templates: the split into context and suffix, spans of answers, and no forged special tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import ChatTemplate, Message
from cartridges_jax.models.template_text import TemplateText
from cartridges_jax.models.tokenizer_files import load_tokenizer
from tests.conftest import CHAT_TEMPLATE, TEST_MODEL

TOKENIZER = load_tokenizer(TEST_MODEL)
TEMPLATE = ChatTemplate(TOKENIZER, CHAT_TEMPLATE)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + m['content'] | trim }}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
TEXTS = st.text(max_size=60) | st.sampled_from(
    ["<|end|>", "a <|user|> b", "<|begin|>", "x\n\n  y "]
)


def conversation(*contents):
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)]


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_text_round_trips_and_never_becomes_a_special_token(text):
    ids = TOKENIZER.encode(text)
    assert not set(ids) & set(TOKENIZER.special_tokens.values())
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, LLAMA3])
@given(title=TEXTS, text=TEXTS, question=TEXTS, answer=TEXTS)
@settings(max_examples=50, deadline=None)
def test_context_and_suffix_make_the_whole_conversation(source, title, text, question, answer):
    template = ChatTemplate(TOKENIZER, source)
    messages = conversation(question, answer)
    content = f"{title}\n\n{text}" if title else text
    whole = template.render([Message(role="system", content=content), *messages])
    suffix = template.render_suffix(messages)
    assert template.render_context(title, text) + suffix.token_ids.tolist() == whole
    ends = whole.count(TOKENIZER.id_of("<|end|>"))
    assert ends == 3  # whatever the contents look like


def test_answers_and_their_closing_token_are_marked():
    suffix = TEMPLATE.render_suffix(conversation("Who?", "Ada.", "Where?", "Oslo."))
    ids = suffix.token_ids[suffix.is_answer].tolist()
    end = TOKENIZER.id_of("<|end|>")
    assert ids == [*TOKENIZER.encode("Ada."), end, *TOKENIZER.encode("Oslo."), end]


def test_generation_prompt_follows_and_is_no_answer():
    ids = TEMPLATE.render_turns(conversation("Who?"), add_generation_prompt=True)
    assert ids[-1] == TOKENIZER.id_of("<|assistant|>")


def test_context_is_head_text_closing():
    context = TEMPLATE.render_context("", "Some text.")
    head, closing = TEMPLATE.context_head(), TEMPLATE.context_closing()
    assert context == [*head, *TOKENIZER.encode("Some text."), *closing]


def test_a_template_that_hides_the_system_turn_is_refused():
    late = "{% for m in messages | reverse %}{{ m['role'] + m['content'] }}{% endfor %}"
    template = ChatTemplate(TOKENIZER, late)
    with pytest.raises(InputError, match="once each and in order"):
        template.render_suffix(conversation("Who?"))
    with pytest.raises(InputError, match="once each and in order"):
        template.render_context("", "a document")
    changed = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="does not render the system turn as a prefix"):
        ChatTemplate(TOKENIZER, changed).render_suffix(conversation("Who?"))
    endless = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="nothing would stop an answer"):
        ChatTemplate(TOKENIZER, endless).render_suffix(conversation("Who?", "Ada."))


def test_json_in_a_template_is_what_transformers_writes():
    source = "{% for m in messages %}{{ m | tojson }}<|end|>{% endfor %}"
    rendered = TemplateText(TOKENIZER, source).render(conversation("Où <là>?"))
    assert '"content": "Où <là>?"' in rendered


def test_what_the_package_sets_is_no_option():
    with pytest.raises(InputError, match=r"\['messages'\] are set by this package"):
        ChatTemplate(TOKENIZER, "{{ messages }}", {"messages": []})


def test_a_template_cannot_reach_out_of_its_sandbox():
    evil = "{{ messages.__class__.__mro__[-1].__subclasses__() }}"
    with pytest.raises(InputError, match="rejects this conversation"):
        ChatTemplate(TOKENIZER, evil).render(conversation("Who?"))
