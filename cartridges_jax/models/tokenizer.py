"""Text to token ids and back: `tokenizer.json` and SentencePiece `tokenizer.model`.

Special tokens are reached only by name, through `special_id`; `encode` never makes one out of
text that looks like it, so a document cannot close its own turn.
"""

import abc
import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import sentencepiece
import tokenizers
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from cartridges_jax.errors import InputError
from cartridges_jax.models.config import read_json_object


class Tokenizer(abc.ABC):
    """What the package needs of a tokenizer."""

    special_tokens: dict[str, int]  # ids by their spelling
    bos_token: str | None
    eos_token: str | None
    pad_id: int  # fills unused positions; models never see it as content
    vocab_size: int  # one more than the largest id
    fingerprint: str  # sha256 of what decides the ids

    @abc.abstractmethod
    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Encodes text as text: no special token is added or recognised.

        Args:
          text: any.
          continues: other tokens precede it; where the model marks the start of a sequence by a
            space, none is added.
        """

    @abc.abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes ids; special tokens are left out."""

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """The files of the tokenizer by name, as a Hugging Face folder holds them."""

    def special_id(self, token: str) -> int:
        """Returns the id of a special token; KeyError if there is none of that spelling."""
        return self.special_tokens[token]


def load_tokenizer(folder: epath.PathLike) -> Tokenizer:
    """Reads `tokenizer.json`, or else `tokenizer.model`, as transformers does.

    Raises:
      InputError: if there is neither, or the file is damaged.
    """
    folder = epath.Path(folder)
    if (folder / "tokenizer.json").exists():
        return JsonTokenizer.load(folder)
    path = folder / "tokenizer.model"
    if not path.exists():
        raise InputError(f"no tokenizer.json and no tokenizer.model in {folder}")
    config = folder / "tokenizer_config.json"
    legacy = config.exists() and bool(read_json_object(config).get("legacy"))
    try:
        tokenizer = SentencePieceTokenizer(path.read_bytes(), legacy)
    except RuntimeError as error:
        raise InputError(f"{path} is not a SentencePiece model: {error}") from error
    if tokenizer.vocab_size == 0:
        raise InputError(f"{path} is an empty SentencePiece model; it may be cut")
    return tokenizer


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
        if self._legacy or not proto.normalizer_spec.add_dummy_prefix:
            return self._processor
        proto.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return (self._continuing if continues else self._processor).encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in token_ids])

    def files(self) -> dict[str, bytes]:
        fields = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "legacy": self._legacy,
        }
        config = json.dumps(fields, indent=2) + "\n"
        return {"tokenizer.model": self._model_bytes, "tokenizer_config.json": config.encode()}


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library."""

    def __init__(self, source: str, bos_token: str | None, eos_token: str | None):
        fields = json.loads(source)
        self._source = source
        self._opening = _tokenizer(fields)
        self._continuing = _tokenizer(_without_opening_space(fields))
        added = {t["content"]: t for t in fields.get("added_tokens") or ()}
        self.special_tokens = {c: t["id"] for c, t in added.items() if t["special"]}
        for token in (bos_token, eos_token):
            if token is not None and token not in self.special_tokens:
                raise InputError(f"the special token {token!r} is none of tokenizer.json")
        self.bos_token, self.eos_token = bos_token, eos_token
        self.pad_id = 0
        ids = self._opening.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        words = f"{source}\0{bos_token}\0{eos_token}"
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()

    @classmethod
    def load(cls, folder: epath.Path) -> "JsonTokenizer":
        """Reads `tokenizer.json`, and the names of BOS and EOS from the files beside it."""
        path = folder / "tokenizer.json"
        named: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).exists():
                named |= read_json_object(folder / name)

        def token(name: str) -> str | None:
            value = named.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if not isinstance(value, str | None):
                raise InputError(f"{folder}: {name} must be a text, got {value!r}")
            return value

        try:
            return cls(path.read_text(encoding="utf-8"), token("bos_token"), token("eos_token"))
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error
        except Exception as error:  # the library raises no narrower class
            raise InputError(f"{path} is not a tokenizer that can be read: {error}") from error

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        tokenizer = self._continuing if continues else self._opening
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._opening.decode([int(i) for i in token_ids], skip_special_tokens=True)

    def files(self) -> dict[str, bytes]:
        fields = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }
        config = json.dumps(fields, indent=2) + "\n"
        return {"tokenizer.json": self._source.encode(), "tokenizer_config.json": config.encode()}


def _tokenizer(fields: dict[str, Any]) -> Any:
    tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(fields))
    tokenizer.encode_special_tokens = True  # as text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_opening_space(fields: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer as it treats text after a special token: no space for the first word.

    Llama 2's and Mistral's put one before the text that opens a sequence ("first"); a scheme of
    "always", or a normalizer that prepends, means every piece of text and stays.
    """
    fields = copy.deepcopy(fields)
    step = fields.get("pre_tokenizer") or {}
    for part in [step, *(step.get("pretokenizers") or ())]:
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    return fields
