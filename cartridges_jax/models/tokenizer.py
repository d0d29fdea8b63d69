"""Text to token ids and back: `tokenizer.json` and SentencePiece `tokenizer.model`.

Special tokens are reached only by name, through `special_id`; `encode` never makes one out of
text that looks like it, so a document cannot close its own turn.
"""

import abc
import copy
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import sentencepiece
import tokenizers
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from cartridges_jax.errors import InputError
from cartridges_jax.models.config import read_json_object

# What stands before a piece of text. Llama 2's and Mistral's tokenizers mark the start of a word by
# a space, and put one before the text that opens a sequence; older ones before every piece of text
# that follows a special token.
After = Literal["nothing", "special", "text"]


class Tokenizer(abc.ABC):
    """What the package needs of a tokenizer."""

    special_tokens: dict[str, int]  # ids by their spelling
    bos_token: str | None
    eos_token: str | None
    pad_id: int  # fills unused positions; models never see it as content
    vocab_size: int  # one more than the largest id
    fingerprint: str  # sha256 of what decides the ids

    @abc.abstractmethod
    def encode(self, text: str, *, after: After = "nothing") -> list[int]:
        """Encodes text as text: no special token is added or recognised.

        Args:
          text: any.
          after: what precedes it in its sequence: nothing, a special token, or other text.
        """

    @abc.abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes ids; special tokens are left out."""

    @abc.abstractmethod
    def has_piece(self, token: str) -> bool:
        """Whether a token of this spelling, special or not, has an id."""

    def special_id(self, token: str) -> int:
        """Returns the id of a special token; KeyError if there is none of that spelling."""
        return self.special_tokens[token]


def load_tokenizer(folder: epath.PathLike) -> Tokenizer:
    """Reads `tokenizer.json`, or else `tokenizer.model`.

    A SentencePiece model is used as `sentencepiece` uses it; transformers, which converts it,
    treats blanks at the very start of a text otherwise.

    Raises:
      InputError: if there is neither, or the file is damaged.
    """
    folder = epath.Path(folder)
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            named |= read_json_object(folder / name)
    if (folder / "tokenizer.json").exists():
        return _load_json(folder, named)
    path = folder / "tokenizer.model"
    if not path.exists():
        raise InputError(f"no tokenizer.json and no tokenizer.model in {folder}")
    try:
        tokenizer = SentencePieceTokenizer(path.read_bytes(), bool(named.get("legacy")))
    except RuntimeError as error:
        raise InputError(f"{path} is not a SentencePiece model: {error}") from error
    if tokenizer.vocab_size == 0:
        raise InputError(f"{path} is an empty SentencePiece model; it may be cut")
    added = _added_tokens(named)
    if (folder / "added_tokens.json").exists():
        added |= dict.fromkeys(read_json_object(folder / "added_tokens.json"))
    _refuse_unknown(tokenizer, added, f"{folder}: {path.name}")
    for name in ("bos_token", "eos_token"):
        if _token_name(named, name, folder) not in (None, getattr(tokenizer, name)):
            raise InputError(
                f"{folder}: {name} is {named[name]!r} in tokenizer_config.json and "
                f"{getattr(tokenizer, name)!r} in tokenizer.model; save a tokenizer.json"
            )
    return tokenizer


def _token_name(named: dict[str, Any], name: str, folder: epath.Path) -> str | None:
    value = named.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str | None):
        raise InputError(f"{folder}: {name} must be a text, got {value!r}")
    return value


def _added_tokens(named: dict[str, Any]) -> dict[str, Any]:
    """The tokens that tokenizer_config.json adds, by their spelling."""
    listed = named.get("added_tokens_decoder")
    entries = listed.values() if isinstance(listed, dict) else ()
    return {e["content"]: e for e in entries if isinstance(e, dict) and "content" in e}


def _refuse_unknown(tokenizer: Tokenizer, added: Iterable[str], where: str) -> None:
    """Raises InputError where other files add tokens that the tokenizer's own does not have."""
    unknown = sorted(token for token in added if not tokenizer.has_piece(token))
    if unknown:
        raise InputError(
            f"{where} does not have the tokens {unknown}, which other files add; save the "
            "tokenizer with transformers, which writes them into tokenizer.json"
        )


def _load_json(folder: epath.Path, named: dict[str, Any]) -> "JsonTokenizer":
    path = folder / "tokenizer.json"
    bos, eos = (_token_name(named, name, folder) for name in ("bos_token", "eos_token"))
    fields = read_json_object(path)
    try:
        if named.get("tokenizer_class") in ("LlamaTokenizer", "LlamaTokenizerFast"):
            fields = _as_llama(fields, named)
        made = JsonTokenizer(json.dumps(fields, ensure_ascii=False), bos, eos)
        _refuse_unknown(made, _added_tokens(named), path.name)
        return made
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except Exception as error:  # the library raises no narrower class
        raise InputError(f"{path} is not a tokenizer that can be read: {error}") from error


def _as_llama(fields: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a file that its config calls a LlamaTokenizer.

    It takes vocabulary and merges, and builds the rest anew: the published files of Llama 2 put a
    space before every piece of text, which their authors' tokenizer does only at the start.
    """
    if fields.get("model", {}).get("type") != "BPE" or not fields["model"].get("byte_fallback"):
        return fields  # Llama 3's, by a class of the same name
    scheme = "always" if named.get("legacy", False) else "first"
    if named.get("add_prefix_space") is False:
        scheme = "never"
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return fields | {"normalizer": None, "pre_tokenizer": space}


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; its control symbols are the special tokens."""

    def __init__(self, model_bytes: bytes, legacy: bool = False):
        """Reads the model.

        Args:
          model_bytes: of `tokenizer.model`.
          legacy: the model was trained with a space before every piece of text, not only before
            the first; the field of that name in `tokenizer_config.json`.
        """
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        self._model_bytes = model_bytes
        self._legacy = legacy
        self.fingerprint = hashlib.sha256(model_bytes + b"legacy" * legacy).hexdigest()
        p = self._processor
        self.vocab_size = p.get_piece_size()
        self.special_tokens = {
            p.id_to_piece(i): i for i in range(self.vocab_size) if p.is_control(i)
        }
        self.bos_token = p.id_to_piece(p.bos_id()) if p.bos_id() >= 0 else None
        self.eos_token = p.id_to_piece(p.eos_id()) if p.eos_id() >= 0 else None
        self.pad_id = max(p.pad_id(), 0)

    @functools.cached_property
    def _continuing(self) -> Any:
        """The same model without the space that opens a sequence."""
        proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated
        proto.ParseFromString(self._model_bytes)
        if not proto.normalizer_spec.add_dummy_prefix:
            return self._processor
        proto.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def has_piece(self, token: str) -> bool:
        p = self._processor
        return p.id_to_piece(p.piece_to_id(token)) == token

    def encode(self, text: str, *, after: After = "nothing") -> list[int]:
        opens = after == "nothing" or (after == "special" and self._legacy)
        return (self._processor if opens else self._continuing).encode(text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) of each token of a text that follows a special token."""
        pieces = self._processor.encode(text, return_type="proto").pieces
        return [(piece.begin, piece.end) for piece in pieces]

    def decode(self, token_ids: Sequence[int]) -> str:
        # A model's vocabulary may be padded beyond the tokenizer's.
        return self._processor.decode([int(i) for i in token_ids if i < self.vocab_size])


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library."""

    def __init__(self, source: str, bos_token: str | None, eos_token: str | None):
        fields = json.loads(source)
        named = {token for token in (bos_token, eos_token) if token is not None}
        added = {t["content"]: t for t in fields.get("added_tokens") or ()}
        if named - added.keys():
            raise InputError(
                f"{sorted(named - added.keys())} are no added tokens of tokenizer.json"
            )
        for token in named:  # special because the config says so
            added[token]["special"] = True
        self._opening = _tokenizer(fields)

        def variant(schemes: tuple[str, ...]) -> Any:
            changed = fields | _without_space(fields, schemes)
            return self._opening if changed == fields else _tokenizer(changed)

        self._after_special = variant(("first",))
        self._after_text = variant(("first", "always"))
        self.special_tokens = {c: t["id"] for c, t in added.items() if t["special"]}
        self.bos_token, self.eos_token = bos_token, eos_token
        self.pad_id = 0
        ids = self._opening.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        words = f"{source}\0{bos_token}\0{eos_token}"
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()

    def has_piece(self, token: str) -> bool:
        return self._opening.token_to_id(token) is not None

    def encode(self, text: str, *, after: After = "nothing") -> list[int]:
        by_place = {"special": self._after_special, "text": self._after_text}
        return by_place.get(after, self._opening).encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._opening.decode([int(i) for i in token_ids], skip_special_tokens=True)


def _tokenizer(fields: dict[str, Any]) -> Any:
    tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(fields))
    tokenizer.encode_special_tokens = True  # as text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_space(fields: dict[str, Any], schemes: tuple[str, ...]) -> dict[str, Any]:
    """The pipeline without the space that these schemes put before a piece of text.

    A scheme of "first" means the text that opens a sequence; one of "always", or a normalizer that
    prepends, every piece that follows a special token, but not text that goes on.
    """
    fields = copy.deepcopy({name: fields.get(name) for name in ("normalizer", "pre_tokenizer")})
    step = fields.get("pre_tokenizer") or {}
    for part in [step, *(step.get("pretokenizers") or ())]:
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") in schemes:
            part["prepend_scheme"] = "never"
    normalizer = fields.get("normalizer") or {}
    if "always" in schemes and normalizer.get("type") == "Sequence":
        parts = [n for n in normalizer["normalizers"] if n.get("type") != "Prepend"]
        fields["normalizer"] = normalizer | {"normalizers": parts}
    elif "always" in schemes and normalizer.get("type") == "Prepend":
        fields["normalizer"] = None
    return fields
