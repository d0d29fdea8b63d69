"""A chat template at work: messages in, text out, in which structure is told from content.

*Structure* are the tokens that the template itself writes, and all special ones, whatever a flag
says of them: a document that contains one must not become it. Templates (jinja2, in a sandbox) see
the real contents, with every look-alike of such a token broken by a private character that is taken
out again after rendering. An answer may hold what marks its thoughts (`<think>`), as the model
wrote it, but nothing that begins or ends a turn.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import Tokenizer

TEMPLATE_DATE = "26 Jul 2024"  # templates that print today's date get this one, always
THOUGHT, THOUGHT_END = "<think>", "</think>"  # as the models that think mark what they think
_BREAK = "\ue000"  # stands inside every look-alike of structure while a template runs
# Contents that stand for any.
MARK_SYSTEM, MARK_USER, MARK_ANSWER = (f"\ue001{role}\ue001" for role in ("system", "user", "said"))
_BLANKS = frozenset(  # as Rust has them
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


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
    token_ids: NotRequired[Sequence[int]]  # of an answer, as it was generated, without its end


class Found(NamedTuple):
    """Structure in a rendered text: the token, and the text that it takes with its blanks."""

    token: str
    start: int
    spelled: int  # where it begins without the blanks before it
    end: int


class TemplateText:
    """Renders messages as text with one jinja template."""

    def __init__(self, tokenizer: Tokenizer, source: str, options: dict[str, Any] | None = None):
        """Parses the template.

        Args:
          tokenizer: tells which tokens there are.
          source: jinja2.
          options: further variables of the template, such as Qwen3's `enable_thinking`.

        Raises:
          InputError: if it cannot be parsed.
        """
        self._constants = {
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
            "date_string": TEMPLATE_DATE,
            "tools": None,
            "documents": None,
        }
        self._options = dict(options or {})
        own = {*self._constants, "messages", "add_generation_prompt"}
        if taken := sorted(self._options.keys() & own):
            raise InputError(f"the template's variables {taken} are set by this package")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda _format: TEMPLATE_DATE
        try:
            self._template = environment.from_string(source)
            literals = _literals(environment.parse(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise InputError(f"the chat template cannot be parsed: {error}") from error
        self._find_structure(tokenizer, literals)

    def _find_structure(self, tokenizer: Tokenizer, literals: str) -> None:
        """Sorts the added tokens: what the template writes, and of that what makes the turns."""
        special = set(tokenizer.special_tokens)
        # Blanks and plain words that a template also writes are no structure.
        others = {t for t in tokenizer.added_tokens if re.search(r"[^\w\s]", t)} - special
        self._in_others = self._in_answers = _look_alikes(special)
        past, asked = self._probe()
        written = {t for t in others if t in literals or t in past or t in asked}
        turns = special | {t for t in written if t in past}
        self.structure, self.turns = frozenset(special | written), frozenset(turns)
        self._in_others, self._in_answers = _look_alikes(self.structure), _look_alikes(turns)
        for token in self.structure:
            if tokenizer.added_tokens[token].normalized and tokenizer.normalize(token) != token:
                raise InputError(
                    f"the chat template writes {token!r}, an added token that the tokenizer "
                    "normalizes: whether it is found depends on what is beside it; set its flag "
                    "normalized to false"
                )
        self._flags = {token: tokenizer.added_tokens[token] for token in self.structure}
        self._spelled = _any_of(self.structure)

    def _probe(self) -> tuple[str, str]:
        """A conversation with an answer in its past, and a question: all that turns are made of."""
        system = Message(role="system", content=MARK_SYSTEM)
        user = Message(role="user", content=MARK_USER)
        said = Message(role="assistant", content=MARK_ANSWER)
        texts = []
        for turns, asks in (
            ([system, user, said, user], False), ([user, said, user], False), ([user], True)
        ):  # fmt: skip
            try:
                texts.append(self.render(turns, asks))
            except InputError:  # said where the turns are needed
                texts.append("")
        return texts[0] + texts[1], texts[2]

    @functools.cached_property
    def has_system(self) -> bool:
        """Whether the template knows a system's message; else the first user says it."""
        system = Message(role="system", content=MARK_SYSTEM)
        user = Message(role="user", content=MARK_USER)
        try:
            return MARK_SYSTEM in self._run([system, user], False)
        except InputError:
            self._run([user], False)  # what rejects this too is not about the system
            return False

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The rendered text; `plain` takes out of a part of it what protects its contents.

        Raises:
          InputError: if the template rejects the conversation.
        """
        if messages and messages[0]["role"] == "system" and not self.has_system:
            system, *rest = messages
            if rest and rest[0]["role"] == "user":
                words = f"{system['content']}\n\n{rest[0]['content']}"
                first = Message(role="user", content=words)
                return self._run([first, *rest[1:]], add_generation_prompt)
        return self._run(messages, add_generation_prompt)

    def find(self, text: str, start: int = 0) -> Iterator[Found]:
        """Finds structure in a rendered text from `start` on, as the flags of each token say."""
        done = start
        for match in self._spelled.finditer(text, start):
            flags, (begin, end) = self._flags[match[0]], match.span()
            around = (text[begin - 1 : begin], text[end : end + 1])
            if flags.single_word and any(map(_is_word, around)):
                continue
            first = begin
            while flags.lstrip and first > done and text[first - 1] in _BLANKS:
                first -= 1
            while flags.rstrip and end < len(text) and text[end] in _BLANKS:
                end += 1
            yield Found(match[0], first, begin, end)
            done = end

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        safe = [
            {"role": m["role"], "content": self._protect(m["role"], m["content"])} for m in messages
        ]
        variables = self._constants | self._options
        try:
            return self._template.render(
                **variables, messages=safe, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template may do anything wrong
            raise InputError(f"the chat template rejects this conversation: {error}") from error

    def _protect(self, role: str, content: str) -> str:
        look_alike = self._in_answers if role == "assistant" else self._in_others
        return look_alike.sub(lambda m: m[0] + _BREAK, content)


def plain(text: str) -> str:
    """A part of a rendered text as it was said."""
    return re.sub(f"{_BREAK}({_BREAK}?)", r"\1", text)


def split_thoughts(text: str, opened: bool = False) -> tuple[str, str]:
    """An answer's thoughts with their end, and what it then says.

    Args:
      text: of an answer, perhaps unfinished.
      opened: whether the template opens the thoughts before the answer begins.
    """
    thoughts, end, said = text.rpartition(THOUGHT_END)
    if end:
        return thoughts + end, said
    return (text, "") if opened or text.lstrip().startswith(THOUGHT) else ("", text)


def _any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds tokens, the longest first; without groups, which would make it slow."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _look_alikes(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds the first character of every token in a text, and the private one itself."""
    first = "".join({re.escape(token[0]) for token in tokens}) or "x"
    any_token = _any_of(tokens).pattern
    return re.compile(f"(?=[{first}])(?={any_token})(.)|({_BREAK})", re.DOTALL)


def _is_word(character: str) -> bool:
    """Whether a character, if there is one, is of a word to the tokenizers library."""
    kind = unicodedata.category(character) if character else ""
    return kind[:1] in ("L", "M") or kind in ("Nd", "Nl", "Pc")


def _literals(parsed: jinja2.nodes.Template) -> str:
    """All text that a template holds, pieces apart from each other."""
    data = [node.data for node in parsed.find_all(jinja2.nodes.TemplateData)]
    constants = [node.value for node in parsed.find_all(jinja2.nodes.Const)]
    return "\0".join([*data, *(value for value in constants if isinstance(value, str))])


def _to_json(value: Any, **options: Any) -> str:
    """Transformers' `tojson`: jinja's own escapes what HTML and ASCII do not have."""
    options.setdefault("ensure_ascii", False)
    return json.dumps(value, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
