"""Conversations as token ids: what the model reads as context, as suffix, and where answers lie.

The *context* is the conversation's head that holds a document: BOS, the system turn with title and
text, and its closing tokens. The *suffix* is everything after it; a cartridge replaces the context,
and the suffix follows either. This module is the only place where the two are told apart. Some
templates have no system turn of its own and put the system's text into a user turn (Llama 2,
Mistral; where a template knows no system at all, it is put there for it): there the context ends
where the first user's words begin.

Text is encoded in one piece between structure, as transformers does, but for two borders: the end
of the context, and the end of a generation prompt, after which an answer's tokens were generated.
An answer that brings its tokens is kept token for token.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cartridges_jax.errors import InputError
from cartridges_jax.models.template_text import (
    MARK_ANSWER,
    MARK_SYSTEM,
    MARK_USER,
    THOUGHT,
    THOUGHT_END,
    Message,
    TemplateText,
    plain,
    split_thoughts,
)
from cartridges_jax.models.tokenizer import After, Tokenizer

_log = logging.getLogger(__name__)


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
    opening: str  # before the first user's words, after the closing
    own_turn: bool  # the system has a turn of its own
    empty: str  # what precedes the suffix where there is no document


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part of a suffix: rendered text, or an answer's own tokens."""

    text: str
    is_answer: bool = False
    token_ids: Sequence[int] | None = None  # in place of the text


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
        self.source = source
        self.options = dict(options or {})
        self._text = TemplateText(tokenizer, source, options)
        self.tokenizer = tokenizer.reserving(self._text.structure)

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
        first, *others = self._pieces(messages, add_generation_prompt)
        first = dataclasses.replace(first, text=before + first.text)
        ids, _ = self._encode_pieces([first, *others], self._frame.closing if context else "")
        return context + ids

    def render_context(self, title: str, text: str) -> list[int]:
        """Returns the token ids of a document as the teacher reads it (see the module's head).

        The teacher, `first_tokens`, the truncated control and the full-KV control all use it.
        """
        return self._context(context_text(title, text))

    def render_turns(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[int]:
        """Returns the tokens of `messages` as they follow a context.

        Raises:
          InputError: if the template does not render the context as a prefix of the conversation,
            or rejects the conversation.
        """
        pieces = self._pieces(messages, add_generation_prompt)
        return self._encode_pieces(pieces, self._frame.closing)[0]

    def render_suffix(self, messages: Sequence[Message]) -> Suffix:
        """Returns a conversation as it follows a context, with its answers marked.

        Each answer follows the very prompt that a model is given to make it.

        Raises:
          InputError: as above, or if the template renders an answer so that it does not.
        """
        pieces = self._pieces(messages, False, strict=True)
        ids, marks = self._encode_pieces(pieces, self._frame.closing)
        return Suffix(np.asarray(ids, np.int32), np.asarray(marks, bool))

    def context_head(self) -> list[int]:
        """Returns the tokens of a context before its document: BOS and the system header."""
        return self._encode(self._frame.head)

    def context_closing(self) -> list[int]:
        """Returns the tokens that close a context, after the document."""
        return self._encode(self._frame.closing, "some text", self._frame.opening)

    def empty_context(self) -> list[int]:
        """Returns what precedes a suffix where there is no document.

        BOS for most; what the template itself says where nobody gives a system message (Qwen2.5's
        default prompt, Llama 3.1's dates), as far as it precedes the first turn. Mistral and
        Llama 2 have no border of tokens there: where the question's first word would have merged
        with what precedes it, this and a suffix differ by that split from `render`.
        """
        return self._encode(self._frame.empty, behind=self._frame.opening)

    @functools.cached_property
    def answer_end_id(self) -> int:
        """The token that closes an answer."""
        return self.tokenizer.id_of(self._turn_end)

    @functools.cached_property
    def turn_ids(self) -> frozenset[int]:
        """The tokens that make turns, and all special ones: no answer holds one."""
        return frozenset(map(self.tokenizer.id_of, self._text.turns))

    @functools.cached_property
    def opens_thoughts(self) -> bool:
        """Whether what asks for an answer opens its thoughts, so that the answer begins inside."""
        prompt = self._suffix_text([Message(role="user", content=MARK_USER)], True)
        return prompt.rfind(THOUGHT) > max(prompt.rfind(THOUGHT_END), prompt.rfind(MARK_USER))

    def said(self, answer: str) -> str:
        """What an answer says after its thoughts."""
        return split_thoughts(answer, self.opens_thoughts)[1].lstrip("\n")

    # ---- text

    @functools.cached_property
    def _frame(self) -> _Frame:
        """Finds the template's own text around a document and around a first question.

        Raises:
          InputError: if the template moves the system's text, or does not render it as a prefix of
            the conversation.
        """
        system = Message(role="system", content=MARK_SYSTEM)
        user = Message(role="user", content=MARK_USER)
        if not self._text.has_system:
            _log.info("the chat template knows no system: contexts precede the first question")
        whole = self._text.render([system, user])
        parts = re.split(f"{MARK_SYSTEM}|{MARK_USER}", whole)
        if len(parts) != 3 or whole.index(MARK_SYSTEM) > whole.index(MARK_USER):
            raise InputError(
                "this chat template does not render a system's and a user's turn once each and in "
                "order, so a document cannot be put before a conversation"
            )
        alone = ""
        if self._text.has_system:
            try:
                alone = self._text.render([system])
            except InputError:
                alone = ""
        without = self._text.render([user])
        if alone.count(MARK_SYSTEM) != 1:  # part of the user's turn
            return _Frame(parts[0], parts[1], "", False, without.split(MARK_USER)[0])
        if not whole.startswith(alone):
            raise InputError(
                "this chat template does not render the system turn as a prefix of the "
                "conversation, so a cartridge cannot stand in for it"
            )
        suffix = whole[len(alone) :]
        if not without.endswith(suffix):
            raise InputError("this chat template renders a user's turn differently after a system")
        closing = alone.split(MARK_SYSTEM)[1]
        opening = suffix.split(MARK_USER)[0]
        return _Frame(parts[0], closing, opening, True, without.removesuffix(suffix))

    @functools.cached_property
    def _turn_end(self) -> str:
        """The structure that ends an answer."""
        user = Message(role="user", content=MARK_USER)
        text = self._suffix_text([user, Message(role="assistant", content=MARK_ANSWER)])
        if text.count(MARK_ANSWER) != 1:
            raise InputError("this chat template does not render an assistant's turn once")
        found = next(self._text.find(text, text.index(MARK_ANSWER)), None)
        if found is None:
            raise InputError(
                "this chat template closes an assistant's turn with no token of its own, so "
                "nothing would stop an answer"
            )
        return found.token

    def _end_of_answer(self, text: str, start: int) -> int:
        """Where the token behind an answer that begins at `start` ends."""
        for found in self._text.find(text, start):
            if found.token == self._turn_end:
                return found.spelled + len(found.token)
        raise InputError(f"this chat template does not close an answer with {self._turn_end!r}")

    def _context(self, content: str) -> list[int]:
        system = Message(role="system", content=content)
        if self._frame.own_turn:
            return self._encode(self._text.render([system]), behind=self._frame.opening)
        text = self._text.render([system, Message(role="user", content=MARK_USER)])
        return self._encode(text.rsplit(MARK_USER, 1)[0])

    def _pieces(
        self, messages: Sequence[Message], add_generation_prompt: bool, strict: bool = False
    ) -> list[_Piece]:
        """Cuts a suffix into what the template and the users say, and answers with their end.

        Answers that the template renders otherwise than behind the prompt that asks for them, such
        as one whose thoughts the prompt opens, are refused if `strict` and they do not bring their
        tokens; else they are part of what is said.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        texts = [self._suffix_text(messages[:i], True) for i in answers]
        texts.append(self._suffix_text(messages, add_generation_prompt))
        pieces: list[_Piece] = []
        done = 0  # characters of texts[n] that are in pieces
        for i, prompt, text in zip(answers, texts[:-1], texts[1:], strict=True):
            ids = messages[i].get("token_ids")
            follows = text.startswith(prompt)
            if follows:
                end = self._end_of_answer(text, len(prompt))
            elif strict and ids is not None and i == len(messages) - 1:
                mark = Message(role="assistant", content=MARK_ANSWER)
                texts[-1] = self._suffix_text([*messages[:i], mark])
                end = self._end_of_answer(texts[-1], texts[-1].index(MARK_ANSWER))
            elif strict:
                raise InputError(
                    "this chat template renders an answer otherwise than it asks for one (it opens "
                    "thoughts, or drops those of earlier answers), so what was learnt from it "
                    "would not follow its prompt; conversations that end with their only answer "
                    "and keep its tokens (`token_ids`), as `synthesize` writes them, can be used"
                )
            else:  # what was said so far is rendered anew
                pieces, done = [], 0
                continue
            pieces.append(_Piece(prompt[done:]))
            if ids is None:
                pieces.append(_Piece(text[len(prompt) : end], True))
            else:
                pieces += [_Piece("", True, ids), _Piece(self._turn_end, True)]
            done = end
        return [*pieces, _Piece(texts[-1][done:])]

    def _suffix_text(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        if self._frame.own_turn:
            system = Message(role="system", content=MARK_SYSTEM)
            text = self._text.render([system, *messages], add_generation_prompt)
            before = self._frame.head + MARK_SYSTEM + self._frame.closing
        else:
            # A template that moves the system's text to the last turn would move it with every
            # further turn: the suffix is the conversation without it.
            text = self._text.render(messages, add_generation_prompt)
            before = self._frame.empty
        if not text.startswith(before):
            raise InputError(
                "this chat template does not render the system turn as a prefix of the "
                "conversation, so a cartridge cannot stand in for it"
            )
        return text[len(before) :]

    # ---- tokens

    def _encode_pieces(self, pieces: Sequence[_Piece], before: str) -> tuple[list[int], list[bool]]:
        """Encodes pieces that follow `before`, and tells which tokens are of answers."""
        token_ids: list[int] = []
        is_answer: list[bool] = []
        for piece in pieces:
            if piece.token_ids is None:
                ids = self._encode(piece.text, before)
                before = piece.text or before
            else:
                ids = [int(i) for i in piece.token_ids]
                before = MARK_ANSWER  # any text
            token_ids += ids
            is_answer += [piece.is_answer] * len(ids)
        return token_ids, is_answer

    def _encode(self, text: str, before: str = "", behind: str = "") -> list[int]:
        """Encodes rendered text: structure by its ids, the rest as text.

        What stands before and behind it decides which blanks a token takes away (`lstrip`,
        `rstrip`), and how the first word is encoded.
        """
        whole = before + text + behind
        first, last = len(before), len(before) + len(text)
        token_ids: list[int] = []
        after: After = "nothing"
        done = 0

        def words(stop: int) -> list[int]:
            start = max(done, first)
            inside: After = "text" if start > done else after  # of a text that began before
            part = plain(whole[start : min(stop, last)])
            return self.tokenizer.encode(part, after=inside) if part else []

        for found in self._text.find(whole):
            token_ids += words(found.start)
            if first <= found.spelled < last:
                token_ids.append(self.tokenizer.id_of(found.token))
            done, after = found.end, "special"
        return token_ids + words(last)
