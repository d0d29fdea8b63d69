"""Conversations as token ids: what the model reads as context, as suffix, and where answers lie.

The *context* is the conversation's head that holds a document: BOS, the system turn with title and
text, and its closing tokens. The *suffix* is everything after it; a cartridge replaces the context,
and the suffix follows either. This module is the only place where the two are told apart. Some
templates (Llama 2, Mistral) have no system turn of its own and put the system's text into a user
turn: there the context ends where the first user's words begin.

Templates (jinja2, in a sandbox) see the real contents, with every look-alike of a special token
broken by a private character that is taken out again after rendering: special tokens come from the
template alone. Text is encoded in one piece between special tokens, as transformers does, but for
two borders: the end of the context, and the end of a generation prompt, after which an answer's
tokens were generated.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, TypedDict

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np

from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import After, Tokenizer

TEMPLATE_DATE = "26 Jul 2024"  # templates that print today's date get this one, always
_BREAK = "\ue000"  # stands inside every look-alike of a special token while a template runs
_MARK_SYSTEM, _MARK_USER = "\ue001system\ue001", "\ue001user\ue001"  # contents that stand for any


class _Generation(jinja2.ext.Extension):
    """transformers' `{% generation %}` block, which marks answers: its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Message(TypedDict):
    """One turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Suffix:
    """Tokens after a context. `is_answer[i]`: token i belongs to an assistant turn or closes it."""

    token_ids: np.ndarray  # [T] int32
    is_answer: np.ndarray  # [T] bool


@dataclasses.dataclass(frozen=True)
class _Frame:
    """The template's own text around contexts and suffixes."""

    head: str  # before the document
    closing: str  # after it
    own_turn: bool  # the system has a turn of its own
    empty: str  # what precedes the suffix where there is no document


def context_text(title: str, text: str) -> str:
    """The content of the system turn for a document or chunk."""
    return f"{title}\n\n{text}" if title else text


class ChatTemplate:
    """Renders messages with one tokenizer and one jinja template."""

    def __init__(self, tokenizer: Tokenizer, source: str, options: dict[str, Any] | None = None):
        """Parses the template.

        Args:
          tokenizer: encodes what the template renders.
          source: jinja2.
          options: further variables of the template, such as Qwen3's `enable_thinking`.

        Raises:
          InputError: if it cannot be parsed.
        """
        self.tokenizer = tokenizer
        self.source = source
        self.options = dict(options or {})
        taken = sorted(self.options.keys() & self._variables([]).keys())
        if taken:
            raise InputError(f"the template's variables {taken} are set by this package")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda _format: TEMPLATE_DATE
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template cannot be parsed: {error}") from error
        specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
        any_special = "|".join(map(re.escape, specials)) or r"(?!)"
        first = "".join({re.escape(token[0]) for token in specials}) or "x"
        self._special = re.compile(f"({any_special})")
        self._look_alike = re.compile(f"(?=[{first}])(?={any_special})(.)|({_BREAK})", re.DOTALL)

    # ---- what callers ask for: token ids

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[int]:
        """Returns the token ids of a whole conversation, from BOS on.

        It is the context that its system message makes, or the empty one, and its suffix; also
        where the template itself would move the system's text to a later turn (Mistral).
        """
        context: list[int] = []
        before = self._frame.empty
        if messages and messages[0]["role"] == "system":
            context, before = self._context(messages[0]["content"]), ""
            messages = messages[1:]
            if not messages and not add_generation_prompt:
                return context
        (first, _), *others = self._suffix_pieces(messages, add_generation_prompt)
        text = before + first
        ids = context + self._encode(text, self._frame.closing if context else "")
        for part, _ in others:
            ids += self._encode(part, text)
            text = part or text
        return ids

    def render_context(self, title: str, text: str) -> list[int]:
        """Returns the token ids of a document as the teacher reads it (see the module's head).

        The teacher, `first_tokens`, the truncated control and the full-KV control all use it.
        """
        return self._context(context_text(title, text))

    def render_suffix(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> Suffix:
        """Returns the tokens of `messages` as they follow a context.

        Raises:
          InputError: if the template does not render the context as a prefix of the conversation,
            or rejects the conversation.
        """
        token_ids: list[int] = []
        is_answer: list[bool] = []
        before = self._frame.closing
        for part, flag in self._suffix_pieces(messages, add_generation_prompt):
            ids = self._encode(part, before)
            token_ids += ids
            is_answer += [flag] * len(ids)
            before = part or before
        return Suffix(np.asarray(token_ids, np.int32), np.asarray(is_answer, bool))

    def context_head(self) -> list[int]:
        """Returns the tokens of a context before its document: BOS and the system header."""
        return self._encode(self._frame.head)

    def context_closing(self) -> list[int]:
        """Returns the tokens that close a context, after the document."""
        return self._encode(self._frame.closing, "some text")

    def empty_context(self) -> list[int]:
        """Returns what precedes a suffix where there is no document.

        BOS for most; what the template itself says where nobody gives a system message (Qwen2.5's
        default prompt, Llama 3.1's dates), as far as it precedes the first turn. Mistral and
        Llama 2 have no border of tokens there: where the question's first word would have merged
        with what precedes it, this and a suffix differ by that split from `render`.
        """
        return self._encode(self._frame.empty)

    @functools.cached_property
    def answer_end_id(self) -> int:
        """The special token that closes an answer."""
        turns = [Message(role="user", content="x"), Message(role="assistant", content="x")]
        suffix = self.render_suffix(turns)
        return int(suffix.token_ids[suffix.is_answer][-1])

    # ---- text

    @functools.cached_property
    def _frame(self) -> _Frame:
        """Finds the template's own text around a document and around a first question.

        Raises:
          InputError: if the template leaves out or moves the system's text, or does not render it
            as a prefix of the conversation.
        """
        system = Message(role="system", content=_MARK_SYSTEM)
        user = Message(role="user", content=_MARK_USER)
        whole = self._jinja([system, user])
        parts = re.split(f"{_MARK_SYSTEM}|{_MARK_USER}", whole)
        if len(parts) != 3 or whole.index(_MARK_SYSTEM) > whole.index(_MARK_USER):
            raise InputError(
                "this chat template does not render a system's and a user's turn once each and in "
                "order, so a document cannot be put before a conversation"
            )
        try:
            alone = self._jinja([system])
        except InputError:
            alone = ""
        without = self._jinja([user])
        if alone.count(_MARK_SYSTEM) != 1:  # part of the user's turn
            return _Frame(parts[0], parts[1], False, without.split(_MARK_USER)[0])
        if not whole.startswith(alone):
            raise InputError(
                "this chat template does not render the system turn as a prefix of the "
                "conversation, so a cartridge cannot stand in for it"
            )
        suffix = whole[len(alone) :]
        if not without.endswith(suffix):
            raise InputError("this chat template renders a user's turn differently after a system")
        closing = alone.split(_MARK_SYSTEM)[1]
        return _Frame(parts[0], closing, True, without.removesuffix(suffix))

    def _context(self, content: str) -> list[int]:
        system = Message(role="system", content=content)
        if self._frame.own_turn:
            return self._encode(self._jinja([system]))
        text = self._jinja([system, Message(role="user", content=_MARK_USER)])
        return self._encode(text.rsplit(_MARK_USER, 1)[0])

    def _suffix_pieces(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[tuple[str, bool]]:
        """Cuts a suffix into what the template and the users say, and answers with their end."""
        text = self._suffix_text(messages, add_generation_prompt)
        pieces, done = [], 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = max(done, _shared_length(text, self._suffix_text(messages[:i], True)))
            closing = self._special.search(text, start)
            if closing is None:
                raise InputError(
                    "this chat template closes an assistant's turn with no special token, so "
                    "nothing would stop an answer"
                )
            pieces += [(text[done:start], False), (text[start : closing.end()], True)]
            done = closing.end()
        return [*pieces, (text[done:], False)]

    def _suffix_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if self._frame.own_turn:
            system = Message(role="system", content=_MARK_SYSTEM)
            text = self._jinja([system, *messages], add_generation_prompt)
            before = self._frame.head + _MARK_SYSTEM + self._frame.closing
        else:
            # A template that moves the system's text to the last turn would move it with every
            # further turn: the suffix is the conversation without it.
            text = self._jinja(messages, add_generation_prompt)
            before = self._frame.empty
        if not text.startswith(before):
            raise InputError(
                "this chat template does not render the system turn as a prefix of the "
                "conversation, so a cartridge cannot stand in for it"
            )
        return text[len(before) :]

    def _jinja(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Runs the template on protected contents; what it returns is still protected."""
        safe = [m | {"content": self._protect(m["content"])} for m in messages]
        try:
            return self._template.render(
                **(self._variables(safe, add_generation_prompt) | self.options)
            )
        except Exception as error:  # a template may do anything wrong
            raise InputError(f"the chat template rejects this conversation: {error}") from error

    def _variables(
        self, messages: Sequence[Any], add_generation_prompt: bool = False
    ) -> dict[str, Any]:
        """What every template is given."""
        return {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.tokenizer.bos_token or "",
            "eos_token": self.tokenizer.eos_token or "",
            "date_string": TEMPLATE_DATE,
            "tools": None,
            "documents": None,
        }

    def _protect(self, content: str) -> str:
        return self._look_alike.sub(lambda m: m[0] + _BREAK, content)

    def _encode(self, text: str, before: str = "") -> list[int]:
        """Encodes rendered text: special tokens by name, the rest as text that follows `before`."""
        token_ids: list[int] = []
        after: After = "nothing"
        if before:
            after = "special" if self._special.split(before)[-1] == "" else "text"
        for i, part in enumerate(self._special.split(text)):
            if i % 2:
                token_ids.append(self.tokenizer.special_id(part))
                after = "special"
            elif part:
                plain = re.sub(f"{_BREAK}({_BREAK}?)", r"\1", part)
                token_ids += self.tokenizer.encode(plain, after=after)
                after = "text"
        return token_ids


def _shared_length(a: str, b: str) -> int:
    """How many characters two texts begin alike with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _to_json(value: Any, **options: Any) -> str:
    """Transformers' `tojson`: jinja's own escapes what HTML and ASCII do not have."""
    options.setdefault("ensure_ascii", False)
    return json.dumps(value, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
