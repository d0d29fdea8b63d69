"""The text of a file: what kind of file it is, its encoding, its lines.

A file is read a block at a time, as often as its text is asked for, so that a corpus of any size
fits. UTF-8 is read, and UTF-16 and UTF-32 that say so by their first bytes; all line ends become
one. Of a notebook the cells are read, not what they printed. What only looks like text (PDF, RTF)
is told apart by its first bytes.
"""

import codecs
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from cartridges_jax.errors import InputError

BLOCK = 1 << 18  # bytes that are read at a time
_BOMS = (  # the longer first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FORMATS = ((b"%PDF-", "PDF"), (b"{\\rtf", "RTF"), (b"%!PS", "PostScript"))
_LINE_END = re.compile(r"\r+\n|\r")
NOT_TEXT, NOT_UTF8, EMPTY = "not text", "not UTF-8", "empty"
UNREADABLE, NO_NOTEBOOK = "cannot be read", "damaged notebooks"


class NoTextError(InputError):
    """A file that holds no text that can be read; `why` is the reason, the words tell the file."""

    def __init__(self, path: pathlib.Path, why: str):
        super().__init__(f"{path} is no text that can be read ({why}); convert it to UTF-8 text")
        self.why = why


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file that was found to be text."""

    path: pathlib.Path
    encoding: str
    stamp: tuple[int, int]  # size and date: its text is only what was found while they stay

    @classmethod
    def open(cls, path: pathlib.Path) -> "TextFile":
        """Looks at a file's first bytes.

        Raises:
          NoTextError: if it is no text, which a later byte may also tell (`pieces`).
        """
        try:
            with path.open("rb") as file:
                head = file.read(BLOCK)
            stamp = _stamp(path)
        except OSError:
            raise NoTextError(path, UNREADABLE) from None
        if path.suffix.lower() == ".svg":
            raise NoTextError(path, "images")
        encoding = next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8-sig")
        for start, name in _FORMATS:
            if head.lstrip()[: len(start)].lower() == start.lower():
                raise NoTextError(path, name)
        if encoding == "utf-8-sig" and b"\0" in head:
            raise NoTextError(path, NOT_TEXT)
        return cls(path, encoding, stamp)

    def pieces(self) -> Iterator[str]:
        """The text in pieces, lines ended by a line feed.

        Raises:
          NoTextError: if it cannot be decoded.
          InputError: if the file has changed since it was opened.
        """
        if self.path.suffix.lower() == ".ipynb":
            text = _notebook("".join(self._decoded()))
            if text is None:
                raise NoTextError(self.path, NO_NOTEBOOK)
            yield text
            return
        held = 0  # carriage returns that a line feed may follow
        for piece in self._decoded():
            kept = piece.rstrip("\r")
            if kept:
                yield _LINE_END.sub("\n", "\r" * held + kept)
            held = len(piece) - len(kept) + (0 if kept else held)
        yield "\n" * held

    def _decoded(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder(self.encoding)()
        try:
            if _stamp(self.path) != self.stamp:
                raise InputError(f"{self.path} has changed since it was first read; start again")
            with self.path.open("rb") as file:
                while block := file.read(BLOCK):
                    piece = decoder.decode(block)
                    if "\0" in piece:
                        raise NoTextError(self.path, NOT_TEXT)
                    yield piece
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise NoTextError(self.path, NOT_UTF8 if "8" in self.encoding else NOT_TEXT) from None
        except OSError:
            raise NoTextError(self.path, UNREADABLE) from None


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _notebook(text: str) -> str | None:
    """The cells of a Jupyter notebook: its words, and its code in fences; None if it is none."""
    try:
        fields = json.loads(text)
        told = fields.get("metadata", {}).get("language_info", {})
        language = str(told.get("name", "")) if isinstance(told, dict) else ""
        cells = [_cell(cell, language) for cell in fields["cells"]]
        told = _LINE_END.sub("\n", "\n\n".join(filter(None, cells)))
        told.encode()  # an escape may be half of a character
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return None if "\0" in told else told


def _cell(cell: dict[str, Any], language: str) -> str:
    source = cell["source"]
    text = (source if isinstance(source, str) else "".join(source)).strip("\n")
    # A picture may be pasted into the words.
    text = re.sub(r"\(data:[^)\s]{64,}\)", "()", text)
    is_code = cell["cell_type"] == "code" and text.strip()
    return f"```{language}\n{text}\n```" if is_code else text
