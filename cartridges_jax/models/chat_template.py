"""Conversations as token ids: what the model reads as context, as suffix, and where answers lie.

A template (jinja2, in a sandbox) is rendered with stand-ins for the contents; the text around the
stand-ins is the template's own and may hold special tokens, the contents are encoded as plain text.
So no content can forge a special token, and the place of every answer is known exactly.

The *context* is the conversation's head that holds a document: BOS, the system turn with title and
text, and its closing tokens. The *suffix* is everything after it; a cartridge replaces the context,
and the suffix follows either. `render_context` is the only place where the two are told apart.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, TypedDict

import jinja2.sandbox
import numpy as np
from etils import epath

from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import Tokenizer

TEMPLATE_DATE = "26 Jul 2024"  # templates that print today's date get this one, always


class Message(TypedDict):
    """One turn: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Suffix:
    """Tokens after a context. `is_answer[i]`: token i belongs to an assistant turn or closes it."""

    token_ids: np.ndarray  # [T] int32
    is_answer: np.ndarray  # [T] bool


def context_text(title: str, text: str) -> str:
    """The content of the system turn for a document or chunk."""
    return f"{title}\n\n{text}" if title else text


class ChatTemplate:
    """Renders messages with one tokenizer and one jinja template."""

    def __init__(self, tokenizer: Tokenizer, source: str):
        self.tokenizer = tokenizer
        self.source = source
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda _format: TEMPLATE_DATE
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template cannot be parsed: {error}") from error
        specials = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, specials)) + ")")

    @classmethod
    def load(cls, folder: epath.PathLike, tokenizer: Tokenizer) -> "ChatTemplate":
        """Reads `chat_template` from `folder/tokenizer_config.json`.

        Raises:
          InputError: if there is none.
        """
        path = epath.Path(folder) / "tokenizer_config.json"
        try:
            fields = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        source = fields.get("chat_template") if isinstance(fields, dict) else None
        if not isinstance(source, str) or not source:
            raise InputError(f"no chat_template text in {path}; a chat model's folder has one")
        return cls(tokenizer, source)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[int]:
        """Returns the token ids of a whole conversation, from BOS on."""
        return self._render(messages, add_generation_prompt)[0]

    def render_context(self, title: str, text: str) -> list[int]:
        """Returns the token ids of a document as the teacher reads it (see the module's head).

        The teacher, `first_tokens`, the truncated control and the full-KV control all use it.
        """
        system = Message(role="system", content=context_text(title, text))
        return self.render([system])

    def context_head(self) -> list[int]:
        """Returns the tokens of a context before its document: BOS and the system header."""
        return self._encode_own(self._context_frame()[0])

    def context_closing(self) -> list[int]:
        """Returns the tokens that close the system turn, after the document."""
        return self._encode_own(self._context_frame()[1])

    def _context_frame(self) -> tuple[str, str]:
        [head, _, closing] = self._pieces(_stand_ins([Message(role="system", content="")]), False)
        return head, closing

    def empty_context(self) -> list[int]:
        """Returns the head of a conversation without any document: BOS alone."""
        return [self.tokenizer.special_id(self.tokenizer.bos_token)]

    def render_suffix(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> Suffix:
        """Returns the tokens of `messages` as they follow a context.

        Raises:
          InputError: if the template does not render the context as a prefix of the conversation.
        """
        system = Message(role="system", content="x")
        head = self.render([system])
        whole, is_answer = self._render([system, *messages], add_generation_prompt)
        if whole[: len(head)] != head:
            raise InputError(
                "this chat template does not render the system turn as a prefix of the "
                "conversation, so a cartridge cannot stand in for it"
            )
        ids = np.asarray(whole[len(head) :], np.int32)
        return Suffix(ids, np.asarray(is_answer[len(head) :], bool))

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[list[int], list[bool]]:
        stand_ins = _stand_ins(messages)
        token_ids: list[int] = []
        is_answer: list[bool] = []
        pieces = self._pieces(stand_ins, add_generation_prompt)
        answering = False
        for i, piece in enumerate(pieces):
            if i % 2:
                message = messages[int(piece)]
                answering = message["role"] == "assistant"
                ids = self.tokenizer.encode(message["content"])
                token_ids += ids
                is_answer += [answering] * len(ids)
                continue
            closing, opening = piece, ""
            if answering:
                done = int(pieces[i - 1]) + 1
                closing = self._closing(stand_ins[:done], piece)
                opening = piece[len(closing) :]
            for part, flag in ((closing, answering), (opening, False)):
                ids = self._encode_own(part)
                token_ids += ids
                is_answer += [flag] * len(ids)
        return token_ids, is_answer

    def _pieces(self, stand_ins: Sequence[Message], add_generation_prompt: bool) -> list[str]:
        """Renders stand-ins; even pieces are the template's own text, odd ones a message's index.

        Raises:
          InputError: if the template leaves out, repeats or reorders messages.
        """
        text = self._jinja(stand_ins, add_generation_prompt)
        pieces = re.split("\ue000(\\d+)\ue001", text)
        if pieces[1::2] != [str(i) for i in range(len(stand_ins))]:
            roles = [m["role"] for m in stand_ins]
            raise InputError(
                f"this chat template does not render each of the turns {roles} once and in order "
                "(some have no system turn), so a document cannot be put before a conversation"
            )
        return pieces

    def _closing(self, messages: Sequence[Message], following: str) -> str:
        """Returns the start of `following` that closes the last of `messages`."""
        text = self._jinja(messages, False)
        closing = text.rsplit("\ue001", 1)[1]
        if not following.startswith(closing):
            raise InputError("this chat template closes a turn differently when another follows")
        return closing

    def _encode_own(self, text: str) -> list[int]:
        token_ids: list[int] = []
        for i, part in enumerate(self._special.split(text)):
            if i % 2:
                token_ids.append(self.tokenizer.special_id(part))
            elif part:
                token_ids += self.tokenizer.encode(part)
        return token_ids

    def _jinja(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        fields: dict[str, Any] = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.tokenizer.bos_token,
            "eos_token": self.tokenizer.eos_token,
            "date_string": TEMPLATE_DATE,
        }
        try:
            return self._template.render(**fields)
        except (jinja2.TemplateError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"the chat template rejects this conversation: {error}") from error


def _stand_ins(messages: Sequence[Message]) -> list[Message]:
    """Messages of the same roles whose contents are marks that no text contains."""
    marks = (f"\ue000{i}\ue001" for i in range(len(messages)))
    return [Message(role=m["role"], content=c) for m, c in zip(messages, marks, strict=True)]


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
