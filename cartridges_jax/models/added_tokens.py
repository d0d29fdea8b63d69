"""The added tokens of a Hugging Face folder: one table out of all the files that tell of them.

tokenizer.json lists them with their flags; tokenizer_config.json (`added_tokens_decoder`,
`additional_special_tokens`, `bos_token`, ...), special_tokens_map.json and added_tokens.json say
more about the same tokens, each as the tool that saved the folder understood it. The table is what
transformers 5 makes of them: the config's table, where there is one, goes before tokenizer.json and
the two older files; a token that has a name (BOS, EOS, ...) is special; and what only a list names
is added behind all others. What transformers would give another id than the folder says is refused.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError
from cartridges_jax.models.config import read_json_object

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
# Classes of transformers that build their tokenizer from vocabulary and merges alone, and the
# tokens that they name where the folder does not.
REBUILT: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is found whole in a text; the flags are those of the tokenizers library.

    `id` is None where no file gives one: the token then follows all others.
    """

    id: int | None
    special: bool = True  # not shown in decoded text
    lstrip: bool = False  # takes the blanks before it
    rstrip: bool = False  # and behind it
    single_word: bool = False  # is no token inside of a word
    normalized: bool = False  # is found in normalized text


@dataclasses.dataclass(frozen=True)
class Folder:
    """What the files beside the vocabulary say about tokens, as far as it counts."""

    where: str
    kind: str  # the class that transformers takes, without "Fast"; "" for its general one
    config: dict[str, Any]  # of tokenizer_config.json
    named: dict[str, tuple[str, AddedToken]]  # BOS, EOS and others: the spelling and its flags
    extra: dict[str, AddedToken]  # further special tokens, which only a list names
    listed: dict[str, AddedToken] | None  # `added_tokens_decoder`
    older: dict[str, AddedToken]  # of added_tokens.json

    @classmethod
    def read(cls, folder: epath.Path, kind: str = "") -> "Folder":
        """Reads them; `kind` is one of REBUILT, if transformers takes one of these.

        Raises:
          InputError: if a file is damaged; it names the field.
        """
        where = str(folder / CONFIG)
        config = _json(folder / CONFIG)
        listed = _decoder(config.get("added_tokens_decoder"), f"{where}: added_tokens_decoder")
        extra, own_names = _extra(config, where)
        named = _named(config, where)
        older: dict[str, AddedToken] = {}
        if listed is None:  # otherwise transformers reads neither of the older files
            given = _json(folder / MAP)
            more, more_names = _extra(given, str(folder / MAP), "extra_special_tokens")
            known = extra | more
            named |= _named(given, str(folder / MAP)) | more_names
            older = {
                text: AddedToken(_id(at, str(folder / ADDED)), False, normalized=True)
                for text, at in _json(folder / ADDED).items()
            }
            standard = {text for name, (text, _) in named.items() if name in _NAMES}
            for text in older.keys() & (standard | known.keys()):
                older[text] = AddedToken(older[text].id)
            extra = known or _extra(given, str(folder / MAP))[0]
        named |= own_names
        return cls(str(folder), kind, config, named, extra, listed, older)

    @property
    def names(self) -> dict[str, tuple[str, AddedToken]]:
        """BOS, EOS and others, in the order in which they are added: spelling and flags."""
        own = {n: (text, AddedToken(None)) for n, text in REBUILT.get(self.kind, {}).items()}
        every = own | self.named
        return {name: every[name] for name in (*_NAMES, *every) if name in every}

    def table(
        self, own: Mapping[str, AddedToken], vocabulary: Collection[str]
    ) -> dict[str, AddedToken]:
        """Every added token of the folder, in the order in which they get their ids.

        Args:
          own: those that the tokenizer's own file lists.
          vocabulary: the other tokens that it has.

        Raises:
          InputError: if transformers would drop a token.
        """
        if self.listed is None:
            table = self.older | dict(own)
        else:
            lost = sorted(own.keys() - self.listed.keys() - set(vocabulary))
            if self.kind and lost:
                raise InputError(
                    f"added_tokens_decoder of {CONFIG} does not have {lost}, which tokenizer.json "
                    f"adds, and a {self.kind} then drops; save the tokenizer again with "
                    "transformers"
                )
            table = dict(own) | self.listed
        # The general class adds what tokenizer.json has first, the others all by their ids.
        first = set() if self.kind else own.keys()
        table = dict(sorted(table.items(), key=lambda one: (one[0] not in first, one[1].id or 0)))
        names = dict(self.names.values())
        new = names | self.extra
        for token in (*names, *self.extra):
            table.setdefault(token, new[token])
        for token in names:
            if self.listed is None or token in self.listed or token not in own:
                table[token] = dataclasses.replace(table[token], special=True)
        if self.kind == "Qwen2Tokenizer":  # adds them once more, without flags
            for token in (*names, *self.extra):
                table[token] = AddedToken(table[token].id)
        return table


def _decoder(listed: Any, where: str) -> dict[str, AddedToken] | None:
    if listed is None:
        return None
    if not isinstance(listed, dict):
        raise InputError(f"{where} must be an object, got {listed!r}")
    return {_text(one, where): _flags(one, _id(at, where), where) for at, one in listed.items()}


Named = dict[str, tuple[str, AddedToken]]


def _named(fields: dict[str, Any], where: str) -> Named:
    """The tokens that a file gives names, such as `eos_token`."""
    found = {}
    for name, value in fields.items():
        if value not in (None, "") and (
            name in _NAMES or (name.endswith("_token") and isinstance(value, str))
        ):
            found[name] = _one(value, f"{where}: {name}")
    return found


def _extra(
    fields: dict[str, Any],
    where: str,
    *names: str,
) -> tuple[dict[str, AddedToken], Named]:
    """Further special tokens of a file, by the first of its fields that has some.

    Also those that `extra_special_tokens` gives names.
    """
    for field in names or ("extra_special_tokens", "additional_special_tokens"):
        value = fields.get(field) or ()
        if isinstance(value, dict):
            return {}, {name: _one(v, f"{where}: {field}") for name, v in value.items()}
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: {field} must be a list, got {value!r}")
        if value:
            return dict(_one(v, f"{where}: {field}") for v in value), {}
    return {}, {}


def _one(value: Any, where: str) -> tuple[str, AddedToken]:
    """A special token that is given as text, or as an object with flags; no id."""
    flags = value | {"special": True} if isinstance(value, dict) else {"special": True}
    return _text(value, where), _flags(flags, None, where)


def read_own(listed: Any, where: str) -> dict[str, AddedToken]:
    """The table of a tokenizer.json: its `added_tokens`."""
    if not isinstance(listed, list | None):
        raise InputError(f"{where} must be a list")
    found = {}
    for one in listed or ():
        if not isinstance(one, dict):
            raise InputError(f"{where}: a token must be an object with content, got {one!r}")
        found[_text(one, where)] = _flags(one, _id(one.get("id"), where), where)
    return found


def as_json(table: dict[str, AddedToken]) -> list[dict[str, Any]]:
    """A table as `added_tokens` of a tokenizer.json; every token must have an id."""
    keys = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
    entries = ({"content": text} | dataclasses.asdict(token) for text, token in table.items())
    return [{key: entry[key] for key in keys} for entry in entries]


def _json(path: epath.Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _text(value: Any, where: str) -> str:
    """The spelling of a token that is given as text or as an object."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise InputError(f"{where} must be a text, or an object with content, got {value!r}")
    return text


def _id(value: Any, where: str) -> int:
    is_number = isinstance(value, str) and value.isdecimal() and len(value) < 12
    number = int(value) if is_number else value
    if type(number) is not int or number < 0:
        raise InputError(f"{where}: the id of a token must be a number, got {value!r}")
    return number


def _flags(entry: Any, at: int | None, where: str) -> AddedToken:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a token must be an object with content, got {entry!r}")
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{where}: {name} must be true or false, got {value!r}")
    flags = {"special": False} | flags
    return AddedToken(at, **({"normalized": not flags["special"]} | flags))
