"""A corpus: one text file or a folder of them, in a fixed order, and what was left out of it.

A document is a name (path below the corpus), a title and a text. The title is the Markdown heading
that a text begins with (it is then left out of the text), else the name; source code has none, as
its first comment looks alike. The text stays in its file until it is asked for.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from cartridges_jax import files
from cartridges_jax.corpus import walk
from cartridges_jax.corpus.summary import CorpusSummary
from cartridges_jax.corpus.text_files import BLOCK, EMPTY, NoTextError, TextFile
from cartridges_jax.errors import InputError

WITH_HEADINGS = frozenset({"", ".md", ".markdown", ".txt", ".ipynb"})  # endings of texts
LONGEST_HEADING = 1000  # characters


class Document:
    """One text of a corpus.

    Attributes:
      name: path below the corpus.
      title: what it is about.
      sha256: hash of title and text, as the model reads them.
      length: characters of the text.
    """

    def __init__(self, name: str, title: str, text: str | Callable[[], Iterator[str]]):
        """Takes a text, or what yields it in pieces each time it is asked for."""
        self.name, self.title = name, title
        self._text = text
        digest, self.length = hashlib.sha256(f"{title}\n\n".encode()), 0
        for piece in self.pieces():
            digest.update(piece.encode())
            self.length += len(piece)
        self.sha256 = digest.hexdigest()

    def pieces(self) -> Iterator[str]:
        """The text in pieces of a few hundred thousand characters."""
        if callable(self._text):
            yield from self._text()
        else:
            for start in range(0, len(self._text), BLOCK):
                yield self._text[start : start + BLOCK]

    @property
    def text(self) -> str:
        """The whole text; memory grows with it."""
        return "".join(self.pieces())

    def beginning(self, length: int) -> str:
        """The first `length` characters of the text."""
        return _beginning(self.pieces(), length)

    def __repr__(self) -> str:
        return f"Document({self.name!r}, {self.title!r}, {self.length:,} characters)"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of a file or folder, and what became of every file there."""

    documents: list[Document]
    summary: CorpusSummary

    def lines(self) -> list[str]:
        """What to tell people of it; nothing of a single file."""
        is_folder = len(self.documents) > 1 or self.summary.left_out
        return self.summary.lines() if is_folder else []


def corpus_identity(documents: Sequence[Document]) -> list[dict[str, str]]:
    """What a stage remembers of its corpus: a name and a hash for each document, in order."""
    return [{"name": d.name, "sha256": d.sha256} for d in documents]


def corpus_text(documents: Sequence[Document], length: int | None = None) -> tuple[str, str]:
    """Returns (title, text) of a corpus as one context: whole, or the first `length` characters."""
    if len(documents) == 1:
        [one] = documents
        return one.title, one.text if length is None else one.beginning(length)
    return "", _beginning(_joined(documents), length)


def _joined(documents: Sequence[Document]) -> Iterator[str]:
    """All documents as one text, in pieces."""
    for i, document in enumerate(documents):
        yield ("\n\n" if i else "") + f"# {document.title}\n\n"
        yield from document.pieces()


def _beginning(pieces: Iterator[str], length: int | None) -> str:
    """The first `length` characters of a text in pieces; all of it for None."""
    parts: list[str] = []
    left = length
    for piece in pieces:
        parts.append(piece if left is None else piece[:left])
        if left is not None:
            left -= len(parts[-1])
            if not left:
                break
    return "".join(parts)


def corpus_length(documents: Sequence[Document]) -> int:
    """Characters of all texts."""
    return sum(document.length for document in documents)


def load_documents(path: str | os.PathLike[str]) -> list[Document]:
    """Loads the documents of a file or folder, folders in sorted order.

    Raises:
      InputError: if the path does not exist, a single file is no text or empty, or a folder holds
        no text.
    """
    return read_corpus(path).documents


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    """Loads a file or folder, and tells what became of every file; errors as above."""
    root = pathlib.Path(files.local_path(path))
    if not root.exists():
        raise InputError(f"there is no file or folder {path} to read a corpus from")
    if not root.is_dir():
        if not root.is_file():
            raise InputError(
                f"{path} is neither a file nor a folder; save the text to a file first"
            )
        try:
            document = _document(walk.readable(root.name), root)
        except NoTextError as error:
            if error.why == EMPTY:
                raise InputError(f"{path} is empty; a corpus needs some text") from error
            raise
        return Corpus([document], CorpusSummary.of([document], {}))
    try:
        next(root.iterdir(), None)
    except OSError as error:
        raise InputError(f"the folder {path} cannot be read: {error.strerror}") from error
    documents: list[Document] = []
    left_out: dict[str, list[str]] = {}
    for entry in walk.walk(root):
        why = entry.why
        if not why:
            try:
                documents.append(_document(entry.name, entry.path))
                continue
            except NoTextError as error:
                why = error.why
        left_out.setdefault(why, []).append(entry.name)
    summary = CorpusSummary.of(documents, left_out)
    if not documents:
        why = f": {summary.told_left_out()}" if left_out else ""
        raise InputError(f"the folder {path} holds no text to read{why}")
    return Corpus(documents, summary)


def _document(name: str, path: pathlib.Path) -> Document:
    """Reads a file once, to its end.

    Raises:
      NoTextError: if it is no text.
    """
    file = TextFile.open(path)
    title = None
    if pathlib.PurePath(name).suffix.lower() in WITH_HEADINGS:
        title = _heading(_stripped(file.pieces()))
    skipped = title is not None

    def body() -> Iterator[str]:
        text = _stripped(file.pieces())
        return _stripped(_without_first_line(text)) if skipped else text

    document = Document(name, name if title is None else title, body)
    if not document.length:
        raise NoTextError(path, EMPTY)
    return document


def _heading(text: Iterator[str]) -> str | None:
    """The Markdown heading that a stripped text begins with, if anything follows it."""
    first = ""
    for piece in text:
        first += piece
        if "\n" in first or len(first) > LONGEST_HEADING:
            break
    line, _, rest = first.partition("\n")
    found = re.match(r"# +(.*\S)", line)
    if not found or len(line) > LONGEST_HEADING:
        return None
    return found[1].strip() if rest.strip() or any(piece.strip() for piece in text) else None


def _without_first_line(text: Iterator[str]) -> Iterator[str]:
    for piece in text:
        _, end, rest = piece.partition("\n")
        if end:
            return itertools.chain([rest], text)
    return iter(())


def _stripped(text: Iterator[str]) -> Iterator[str]:
    """A text without the blanks at its ends."""
    held: list[str] = []  # blanks that something may follow
    begun = False
    for piece in text:
        part = piece if begun else piece.lstrip()
        kept = part.rstrip()
        if kept:
            yield "".join([*held, kept])
            held, begun = [], True
        if begun:
            held.append(part[len(kept) :])
