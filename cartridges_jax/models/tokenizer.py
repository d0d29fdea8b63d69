"""Text to token ids and back, for a SentencePiece `tokenizer.model`.

Special tokens are reached only by name, through `special_id`; `encode` never makes one out of
text that looks like it, so a document cannot close its own turn.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import sentencepiece
from etils import epath

from cartridges_jax.errors import InputError


class Tokenizer:
    """A SentencePiece model whose special tokens are control symbols."""

    def __init__(self, model_bytes: bytes):
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        self._fingerprint = hashlib.sha256(model_bytes).hexdigest()

    @classmethod
    def load(cls, folder: epath.PathLike) -> "Tokenizer":
        """Reads `folder/tokenizer.model`.

        Raises:
          InputError: if the file is missing or is not a SentencePiece model.
        """
        path = epath.Path(folder) / "tokenizer.model"
        if not path.exists():
            raise InputError(f"no tokenizer.model in {folder}; only SentencePiece is supported")
        try:
            tokenizer = cls(path.read_bytes())
        except RuntimeError as error:
            raise InputError(f"{path} is not a SentencePiece model: {error}") from error
        if tokenizer.vocab_size == 0:
            raise InputError(f"{path} is an empty SentencePiece model; it may be cut")
        return tokenizer

    def serialized(self) -> bytes:
        """The bytes of the `tokenizer.model` file."""
        return self._processor.serialized_model_proto()

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer file."""
        return self._fingerprint

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Control symbols by their spelling."""
        p = self._processor
        return {p.id_to_piece(i): i for i in range(self.vocab_size) if p.is_control(i)}

    @property
    def bos_token(self) -> str:
        return self._processor.id_to_piece(self._processor.bos_id())

    @property
    def eos_token(self) -> str:
        return self._processor.id_to_piece(self._processor.eos_id())

    @property
    def pad_id(self) -> int:
        """The id that fills unused positions; models never see it as content."""
        return max(self._processor.pad_id(), 0)

    def special_id(self, token: str) -> int:
        """Returns the id of a special token; KeyError if there is none of that spelling."""
        return self.special_tokens[token]

    def encode(self, text: str) -> list[int]:
        """Encodes text as text: no special token is added or recognised."""
        return self._processor.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes ids; special tokens are left out."""
        return self._processor.decode([int(i) for i in token_ids])
