"""From the files of a Hugging Face folder to its tokenizer: `tokenizer.json`, `tokenizer.model`.

tokenizer.json says how text becomes tokens, but for what transformers takes from elsewhere: the
added tokens (`added_tokens.py`), the pipeline of a LlamaTokenizer, and `add_prefix_space` where the
class of the tokenizer reads it.
"""

import dataclasses
import json
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError
from cartridges_jax.models import added_tokens
from cartridges_jax.models.added_tokens import AddedToken, Folder
from cartridges_jax.models.config import read_json_object
from cartridges_jax.models.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer

_GENERAL = ("", "PreTrainedTokenizer", "TokenizersBackend")  # transformers takes the file as it is


def load_tokenizer(folder: epath.PathLike) -> Tokenizer:
    """Reads `tokenizer.json`, or else `tokenizer.model`.

    A SentencePiece model is used as `sentencepiece` uses it; transformers, which converts it,
    treats blanks at the very start of a text otherwise.

    Raises:
      InputError: if there is neither, a file is damaged, or two contradict each other.
    """
    folder = epath.Path(folder)
    if (folder / "tokenizer.json").exists():
        return _load_json(folder)
    if not (folder / "tokenizer.model").exists():
        raise InputError(f"no tokenizer.json and no tokenizer.model in {folder}")
    return _load_sentencepiece(folder)


def _kind(folder: epath.Path, fields: dict[str, Any]) -> str:
    """The class of REBUILT that transformers takes; "" where it takes tokenizer.json as it is."""
    configs = (folder / "config.json", folder / added_tokens.CONFIG)
    model, tokenizer = (read_json_object(p) if p.exists() else {} for p in configs)
    family = model.get("model_type")
    given = tokenizer.get("tokenizer_class") or model.get("tokenizer_class")
    if family == "mistral":
        return ""
    if family == "qwen2" or (family == "qwen3" and not given):
        return "Qwen2Tokenizer"
    kind = given.removesuffix("Fast") if isinstance(given, str) else ""
    pipeline = json.dumps([fields.get("pre_tokenizer"), fields.get("decoder")])
    is_llama3 = kind == "LlamaTokenizer" and "ByteLevel" in pipeline  # of the same name
    if kind in _GENERAL or is_llama3:
        return ""
    if kind not in added_tokens.REBUILT:
        raise InputError(
            f"tokenizer_class {given!r} makes its tokenizer by rules of its own; if tokenizer.json "
            f"is right as it is, set tokenizer_class to TokenizersBackend in {added_tokens.CONFIG}"
        )
    return kind


def _load_json(folder: epath.Path) -> JsonTokenizer:
    path = folder / "tokenizer.json"
    fields = read_json_object(path)
    try:
        files = Folder.read(folder, _kind(folder, fields))
        if files.kind == "LlamaTokenizer":
            fields = _as_llama(fields, files.config)
        elif files.kind:
            fields = _with_prefix_space(fields, bool(files.config.get("add_prefix_space")))
        own = added_tokens.read_own(fields.get("added_tokens"), f"{path}: added_tokens")
        vocabulary = _vocabulary(fields)
        table = files.table(own, set(vocabulary))
        fields = fields | {"added_tokens": added_tokens.as_json(_numbered(table, vocabulary))}
        bos, eos = (files.names.get(n, (None,))[0] for n in ("bos_token", "eos_token"))
        return JsonTokenizer(json.dumps(fields, ensure_ascii=False), bos, eos)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except Exception as error:  # the library raises no narrower class
        raise InputError(f"{path} is not a tokenizer that can be read: {error}") from error


def _vocabulary(fields: dict[str, Any]) -> dict[str, int]:
    vocabulary = fields["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: pieces with scores
        return {piece: i for i, (piece, _) in enumerate(vocabulary)}
    return vocabulary


def _numbered(table: dict[str, AddedToken], vocabulary: dict[str, int]) -> dict[str, AddedToken]:
    """The table with an id for each token, as the tokenizers library gives them.

    Raises:
      InputError: if a file says another id: that of a hole, or of two tokens.
    """
    numbered: dict[str, AddedToken] = {}
    following = len(vocabulary)
    for text, token in table.items():
        at = vocabulary.get(text, following)
        following += at == following
        if token.id is not None and token.id != at:
            raise InputError(
                f"added tokens: {text!r} is said to have the id {token.id}, and would get {at}; "
                "save the tokenizer with transformers"
            )
        numbered[text] = dataclasses.replace(token, id=at)
    return numbered


def _as_llama(fields: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a file that its config calls a LlamaTokenizer.

    It takes vocabulary and merges, and builds the rest anew: the published files of Llama 2 put a
    space before every piece of text, which their authors' tokenizer does only at the start.
    """
    scheme = "always" if config.get("legacy", False) else "first"
    if config.get("add_prefix_space") is False:
        scheme = "never"
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    decoder = {"type": "Sequence", "decoders": steps}
    model = fields["model"] | {"byte_fallback": True, "fuse_unk": True, "dropout": None}
    return fields | {
        "normalizer": None, "pre_tokenizer": space, "decoder": decoder, "model": model
    }  # fmt: skip


def _with_prefix_space(fields: dict[str, Any], given: bool) -> dict[str, Any]:
    """The pipeline of a class that takes `add_prefix_space` from its config."""
    step = fields.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers") or [step]
    changed = [
        s | {"add_prefix_space": given} if s.get("type") == "ByteLevel" else s for s in steps
    ]
    whole = step | {"pretokenizers": changed} if "pretokenizers" in step else changed[0]
    return fields | {"pre_tokenizer": whole or None}


def _load_sentencepiece(folder: epath.Path) -> SentencePieceTokenizer:
    path = folder / "tokenizer.model"
    files = Folder.read(folder)
    try:
        own = SentencePieceTokenizer(path.read_bytes())
        if own.vocab_size == 0:
            raise InputError(f"{path} is an empty SentencePiece model; it may be cut")
        table = files.table(own.added_tokens, set())
    except RuntimeError as error:
        raise InputError(f"{path} is not a SentencePiece model: {error}") from error
    for name in ("bos_token", "eos_token"):
        given = files.names.get(name, (None,))[0]
        if given not in (None, getattr(own, name)):
            raise InputError(
                f"{folder}: {name} is {given!r} in {added_tokens.CONFIG} and "
                f"{getattr(own, name)!r} in {path.name}; save a tokenizer.json"
            )
    unknown = sorted(text for text in table if not own.has_piece(text))
    if unknown:
        raise InputError(
            f"{folder}: {path.name} does not have the tokens {unknown}, which other files add; "
            "save the tokenizer with transformers, which writes them into tokenizer.json"
        )
    return own.with_tokens(table, legacy=bool(files.config.get("legacy")))
