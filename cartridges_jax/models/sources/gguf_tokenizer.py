"""The tokenizer of a GGUF file, rebuilt for the library that it was made with.

Two kinds are common: byte-level BPE ("gpt2": tokens and merges; the pattern that splits text before
is only named) for the tokenizers library, and SentencePiece ("llama": pieces with scores). How each
token is meant is told by its type.
"""

import json
from typing import Any

from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2

from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_DIGITS = {"type": "Digits", "individual_digits": True}


def _by_pattern(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [split | {"invert": False}, _byte_level(False)]


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


# How text is split before merging, by the name in the file; with a normalizer where there is one.
_SPLITS: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None]] = {
    "gpt-2": ([_byte_level(True)], None),
    "smollm": ([_DIGITS, _byte_level(True)], None),
    "llama-bpe": (_by_pattern(_LLAMA3_SPLIT), None),
    "qwen2": (_by_pattern(_QWEN2_SPLIT), {"type": "NFC"}),
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is a token needs no merges


def make_tokenizer(fields: dict[str, Any], where: str) -> Tokenizer:
    """Makes the tokenizer that the fields of a GGUF header tell.

    Args:
      fields: of the header.
      where: the file, for errors.

    Raises:
      InputError: if the kind or the pattern is unknown, or the lists do not fit each other.
    """
    kind = fields.get("tokenizer.ggml.model")
    try:
        tokens, types = _list(fields, "tokens", str), _list(fields, "token_type", int)
        if len(types) != len(tokens):
            raise InputError(f"it has {len(tokens)} tokens and {len(types)} types of tokens")
        if kind == "gpt2":
            return _byte_bpe(fields, tokens, types)
        if kind == "llama":
            return _sentencepiece(fields, tokens, types)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:  # the libraries raise no narrower class
        raise InputError(f"{where} holds no tokenizer that can be made: {error}") from error
    raise InputError(f"{where}: the tokenizer model {kind!r} is not supported; gpt2 and llama are")


def _list(fields: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(type(v) is kind for v in values):
        raise InputError(f"there is no list tokenizer.ggml.{name} of {kind.__name__}")
    return values


def _named(fields: dict[str, Any], name: str, tokens: list[str]) -> str | None:
    """The token that a field gives the id of."""
    at = fields.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[at] if type(at) is int and 0 <= at < len(tokens) else None


def _byte_bpe(fields: dict[str, Any], tokens: list[str], types: list[int]) -> JsonTokenizer:
    split = fields.get("tokenizer.ggml.pre", "gpt-2")
    if split not in _SPLITS:
        raise InputError(f"the pre-tokenizer {split!r} is not supported; {', '.join(_SPLITS)} are")
    steps, normalizer = _SPLITS[split]
    bos, eos = (_named(fields, name, tokens) for name in ("bos", "eos"))
    added = [
        {
            "id": i,
            "content": token,
            "special": kind == TokenType.CONTROL,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) or token in (bos, eos)
    ]
    merges = [merge.split(" ", 1) for merge in _list(fields, "merges", str)]
    unused = (TokenType.UNUSED, TokenType.UNKNOWN)
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind not in unused
    }
    made = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "byte_fallback": False,
            "ignore_merges": split in _WHOLE_WORDS_FIRST,
        },
    }
    return JsonTokenizer(json.dumps(made, ensure_ascii=False), bos, eos)


def _sentencepiece(
    fields: dict[str, Any], tokens: list[str], types: list[int]
) -> SentencePieceTokenizer:
    """GGUF's token types are SentencePiece's own."""
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InputError(f"it has {len(tokens)} tokens and no such list of scores")
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # generated
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=float(score), type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = sentencepiece_model_pb2.TrainerSpec.BPE  # type: ignore[attr-defined]
    trainer.byte_fallback = TokenType.BYTE in types
    trainer.vocab_size = len(tokens)
    for name, default in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", -1)):
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        at = fields.get(f"tokenizer.ggml.{key}_token_id", default)
        setattr(trainer, f"{name}_id", at if type(at) is int and at < len(tokens) else default)
        if 0 <= getattr(trainer, f"{name}_id") < len(tokens):
            setattr(trainer, f"{name}_piece", tokens[getattr(trainer, f"{name}_id")])
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = False
    return SentencePieceTokenizer(proto.SerializeToString())
