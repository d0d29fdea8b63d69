"""Text to token ids and back: `tokenizer.json` and SentencePiece models.

`encode` takes text as text: it never makes a special token out of what looks like one, nor any
other token that was `reserved` (those that a chat template writes), so a document cannot close its
own turn. These are reached only by their id, through `added_tokens`.
"""

import abc
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from cartridges_jax.errors import InputError
from cartridges_jax.models.added_tokens import AddedToken, as_json, read_own

# What stands before a piece of text. Llama 2's and Mistral's tokenizers mark the start of a word by
# a space, and put one before the text that opens a sequence; older ones before every piece of text
# that follows a special token.
After = Literal["nothing", "special", "text"]


class Tokenizer(abc.ABC):
    """What the package needs of a tokenizer."""

    added_tokens: Mapping[str, AddedToken]  # those that are found whole, by their spelling
    reserved: frozenset[str]  # of them, besides the special ones, those that text never becomes
    bos_token: str | None
    eos_token: str | None
    pad_id: int  # fills unused positions; models never see it as content
    num_pieces: int  # one more than the largest id of the vocabulary that text is made of
    fingerprint: str  # sha256 of what decides the ids

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max([self.num_pieces, *(self.id_of(token) + 1 for token in self.added_tokens)])

    @property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the special tokens by their spelling; decoded text does not show them."""
        return {t: self.id_of(t) for t, token in self.added_tokens.items() if token.special}

    def id_of(self, token: str) -> int:
        """The id of an added token; KeyError if there is none of that spelling."""
        found = self.added_tokens[token].id
        assert found is not None  # whoever makes a tokenizer numbers its table
        return found

    @abc.abstractmethod
    def reserving(self, tokens: Collection[str]) -> "Tokenizer":
        """The same tokenizer, whose text becomes none of these added tokens either."""

    @abc.abstractmethod
    def encode(self, text: str, *, after: After = "nothing") -> list[int]:
        """Encodes text as text: no special or reserved token is added or recognised.

        Args:
          text: any.
          after: what precedes it in its sequence: nothing, a special token, or other text.
        """

    @abc.abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes ids; special tokens are left out."""

    @abc.abstractmethod
    def normalize(self, text: str) -> str:
        """A text as the tokenizer sees it."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; control symbols are special, those of its user are added tokens."""

    def __init__(
        self,
        model_bytes: bytes,
        legacy: bool = False,
        added_tokens: Mapping[str, AddedToken] | None = None,
        reserved: frozenset[str] = frozenset(),
    ):
        """Reads the model.

        Args:
          model_bytes: of `tokenizer.model`.
          legacy: the model was trained with a space before every piece of text, not only before
            the first; the field of that name in `tokenizer_config.json`.
          added_tokens: what other files say of its symbols; None for what the model says.
          reserved: see the class.
        """
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        self._model_bytes = model_bytes
        self._legacy = legacy
        self.reserved = reserved
        self.fingerprint = hashlib.sha256(model_bytes + b"legacy" * legacy).hexdigest()
        p = self._processor
        self.num_pieces = p.get_piece_size()
        self._symbols = {
            p.id_to_piece(i): AddedToken(i, special=p.is_control(i))
            for i, piece in enumerate(self._proto().pieces)
            if p.is_control(i) or piece.type == piece.USER_DEFINED
        }
        self.added_tokens = self._symbols if added_tokens is None else dict(added_tokens)
        if self.added_tokens != self._symbols:
            words = json.dumps(as_json(dict(self.added_tokens)), sort_keys=True)
            self.fingerprint = hashlib.sha256((self.fingerprint + words).encode()).hexdigest()
        self.bos_token = p.id_to_piece(p.bos_id()) if p.bos_id() >= 0 else None
        self.eos_token = p.id_to_piece(p.eos_id()) if p.eos_id() >= 0 else None
        self.pad_id = max(p.pad_id(), 0)

    def with_tokens(
        self, table: Mapping[str, AddedToken], legacy: bool
    ) -> "SentencePieceTokenizer":
        """The same model with what other files say of its tokens.

        Raises:
          InputError: if they give one another id, or make an added token of an ordinary piece.
        """
        numbered = {}
        for text, token in table.items():
            at = self._processor.piece_to_id(text)
            if token.id not in (None, at):
                raise InputError(f"the token {text!r} is {at}, and other files say {token.id}")
            if not token.special and text not in self._symbols:
                raise InputError(
                    f"the added token {text!r} is an ordinary piece of tokenizer.model; save the "
                    "tokenizer with transformers"
                )
            numbered[text] = dataclasses.replace(token, id=at)
        return SentencePieceTokenizer(
            self._model_bytes, legacy, dict(self._symbols) | numbered, self.reserved
        )

    def reserving(self, tokens: Collection[str]) -> "SentencePieceTokenizer":
        if not set(tokens) - self.reserved - self.special_tokens.keys():
            return self
        reserved = self.reserved | set(tokens)
        return SentencePieceTokenizer(
            self._model_bytes, self._legacy, self.added_tokens, frozenset(reserved)
        )

    def _proto(self) -> Any:
        proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated
        proto.ParseFromString(self._model_bytes)
        return proto

    @functools.cached_property
    def _encoders(self) -> tuple[Any, Any]:
        """The model without reserved symbols; with the space that opens a sequence, and without."""
        proto = self._proto()
        hidden = self.reserved | self.special_tokens.keys()
        for piece in proto.pieces:
            if piece.type in (piece.NORMAL, piece.USER_DEFINED) and piece.piece in hidden:
                piece.type = piece.CONTROL  # which no text is

        def processor() -> Any:
            return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

        opening = processor()
        if not proto.normalizer_spec.add_dummy_prefix:
            return opening, opening
        proto.normalizer_spec.add_dummy_prefix = False
        return opening, processor()

    def has_piece(self, token: str) -> bool:
        """Whether a token of this spelling, special or not, has an id."""
        p = self._processor
        return p.id_to_piece(p.piece_to_id(token)) == token

    def encode(self, text: str, *, after: After = "nothing") -> list[int]:
        opens = after == "nothing" or (after == "special" and self._legacy)
        return self._encoders[0 if opens else 1].encode(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of a text that follows a special token."""
        pieces = self._encoders[0].encode(text, return_type="proto").pieces
        return [(piece.begin, piece.end) for piece in pieces]

    def decode(self, token_ids: Sequence[int]) -> str:
        # A model's vocabulary may be padded beyond the tokenizer's.
        hidden = set(self.special_tokens.values())
        shown = [int(i) for i in token_ids if i < self.num_pieces and i not in hidden]
        return self._processor.decode(shown)

    def normalize(self, text: str) -> str:
        return text  # its symbols are found before it normalizes


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library."""

    def __init__(
        self,
        source: str,
        bos_token: str | None,
        eos_token: str | None,
        reserved: frozenset[str] = frozenset(),
    ):
        """Reads the file.

        Args:
          source: its text; it lists all added tokens.
          bos_token: the spelling of the token that opens a sequence.
          eos_token: and of the one that ends an answer.
          reserved: see the class.

        Raises:
          InputError: if one of these is no added token, or has another id than it is given.
        """
        self._source = source
        fields = json.loads(source)
        self.added_tokens = read_own(fields.get("added_tokens"), "added_tokens")
        self.reserved = reserved
        unknown = {bos_token, eos_token} - self.added_tokens.keys() - {None}
        if unknown:
            raise InputError(f"{sorted(map(str, unknown))} are no added tokens of tokenizer.json")
        self.bos_token, self.eos_token = bos_token, eos_token
        self.pad_id = 0
        self._opening = self._encoder(())
        for token, entry in self.added_tokens.items():
            if self._opening.token_to_id(token) != entry.id:
                raise InputError(
                    f"the added token {token!r} is said to have the id {entry.id}, and gets "
                    f"{self._opening.token_to_id(token)}; save the tokenizer with transformers"
                )
        ids = self._opening.get_vocab(with_added_tokens=False).values()
        self.num_pieces = max(ids, default=-1) + 1
        words = f"{source}\0{bos_token}\0{eos_token}"
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()
        self._hidden = frozenset(self.special_tokens.values())
        # What text is never, though the vocabulary of the model may hold it as a piece.
        unknown = {fields["model"].get("unk_id"), self._opening.token_to_id(_unknown(fields))}
        self._never = (self._hidden | set(map(self.id_of, reserved))) - unknown

    def reserving(self, tokens: Collection[str]) -> "JsonTokenizer":
        if not set(tokens) - self.reserved - self.special_tokens.keys():
            return self
        reserved = self.reserved | set(tokens)
        return JsonTokenizer(self._source, self.bos_token, self.eos_token, frozenset(reserved))

    @functools.cached_property
    def _after_special(self) -> Any:
        return self._encoder(("first",))

    @functools.cached_property
    def _after_text(self) -> Any:
        return self._encoder(("first", "always"))

    def _encoder(self, schemes: tuple[str, ...]) -> Any:
        """The library's tokenizer, without the space that these schemes put before a text.

        What is reserved is special in it: it takes special tokens in a text as text.
        """
        fields = json.loads(self._source)
        changed = _without_space(fields, schemes)
        if schemes and all(fields.get(name) == value for name, value in changed.items()):
            return self._opening
        table = {
            text: dataclasses.replace(token, special=token.special or text in self.reserved)
            for text, token in self.added_tokens.items()
        }
        fields |= changed | {"added_tokens": as_json(table)}
        tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(fields))
        tokenizer.encode_special_tokens = True  # as text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, text: str, *, after: After = "nothing") -> list[int]:
        match after:
            case "nothing":
                encoder = self._opening
            case "special":
                encoder = self._after_special
            case "text":
                encoder = self._after_text
        encoding = encoder.encode(text, add_special_tokens=False)
        if self._never.isdisjoint(encoding.ids):
            return encoding.ids
        # A word of the vocabulary that is a special token: it is cut behind its first character.
        found = (encoding.offsets[i] for i, at in enumerate(encoding.ids) if at in self._never)
        cuts = sorted({0, len(text), *(start + 1 for start, end in found if end - start > 1)})
        if len(cuts) < 3:
            raise InputError(f"the tokenizer makes a special token of the text {text[:40]!r}")
        first, *others = itertools.pairwise(cuts)
        ids = self.encode(text[slice(*first)], after=after)
        for part in others:
            ids += self.encode(text[slice(*part)], after="text")
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        shown = [int(i) for i in token_ids if i not in self._hidden]
        return self._opening.decode(shown, skip_special_tokens=False)

    def normalize(self, text: str) -> str:
        normalizer = self._opening.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


def _unknown(fields: dict[str, Any]) -> str:
    """What a vocabulary has for words that it does not know; any text may become that."""
    token = fields["model"].get("unk_token")
    return token if isinstance(token, str) else ""


def _without_space(fields: dict[str, Any], schemes: tuple[str, ...]) -> dict[str, Any]:
    """The pipeline without the space that these schemes put before a piece of text.

    A scheme of "first" means the text that opens a sequence; one of "always", a normalizer that
    prepends, or bytes with a prefix space: every piece that follows a special token, but not text
    that goes on.
    """
    fields = copy.deepcopy({name: fields.get(name) for name in ("normalizer", "pre_tokenizer")})
    step = fields.get("pre_tokenizer") or {}
    for i, part in enumerate([step, *(step.get("pretokenizers") or ())]):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") in schemes:
            part["prepend_scheme"] = "never"
        # Behind another step, bytes are given words one by one, and put a space before each.
        if part.get("type") == "ByteLevel" and "always" in schemes and i < 2:
            part["add_prefix_space"] = False
    normalizer = fields.get("normalizer") or {}
    if "always" in schemes and normalizer.get("type") == "Sequence":
        parts = [n for n in normalizer["normalizers"] if n.get("type") != "Prepend"]
        fields["normalizer"] = normalizer | {"normalizers": parts}
    elif "always" in schemes and normalizer.get("type") == "Prepend":
        fields["normalizer"] = None
    return fields
