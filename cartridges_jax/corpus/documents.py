"""Loads a corpus: one text file or a folder of them, in a fixed order.

A document is a name (path below the corpus), a title and a text. The title is the Markdown heading
that a text begins with (it is then left out of the text), else the name; source code has none, as
its first comment looks alike. In a folder, files that are not UTF-8 text are left out and counted;
a single file that is not text is an error.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

from etils import epath

from cartridges_jax import files
from cartridges_jax.errors import InputError

_log = logging.getLogger(__name__)

WITH_HEADINGS = frozenset({"", ".md", ".markdown", ".txt"})  # endings of texts
HEAD_BYTES = 8192  # read to tell text from other files, which may be large
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})


@dataclasses.dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    name: str
    title: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of title and text, as the model reads them."""
        return hashlib.sha256(f"{self.title}\n\n{self.text}".encode()).hexdigest()


def corpus_identity(documents: Sequence[Document]) -> list[dict[str, str]]:
    """What a stage remembers of its corpus: a name and a hash for each document, in order."""
    return [{"name": d.name, "sha256": d.sha256} for d in documents]


def corpus_text(documents: Sequence[Document]) -> tuple[str, str]:
    """Returns (title, text) of a whole corpus as one context."""
    if len(documents) == 1:
        return documents[0].title, documents[0].text
    return "", "\n\n".join(f"# {d.title}\n\n{d.text}" for d in documents)


def parse_document(name: str, content: str) -> Document:
    """Splits a leading Markdown heading off as the title."""
    content = content.replace("\r\n", "\n").strip()
    first, _, rest = content.partition("\n")
    has_heading = pathlib.PurePath(name).suffix.lower() in WITH_HEADINGS
    if has_heading and first.startswith("# ") and rest.strip():
        return Document(name, first.removeprefix("# ").strip(), rest.strip())
    return Document(name, name, content)


def _read_text(path: epath.Path) -> str | None:
    """Returns the file's text, or None where it cannot be read as UTF-8 text."""
    if not pathlib.Path(path).is_file():  # epath calls all files that are no folders
        return None  # a dangling link, a pipe, or a folder that we may not list
    try:
        with path.open("rb") as file:
            data = file.read(HEAD_BYTES)
            if b"\0" not in data:
                data += file.read()
    except OSError:
        return None
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _readable(name: str) -> str:
    """A file's name as text, whatever bytes it is of."""
    return os.fsencode(name).decode("utf-8", "replace")


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields the files of a folder and its folders by name; hidden ones are left out.

    A folder that may not be listed is yielded itself.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        yield folder
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SKIPPED_FOLDERS:
            continue
        if entry.is_dir() and not pathlib.Path(entry).is_symlink():  # a link may lead in circles
            yield from _files_below(entry)
        elif not entry.is_dir():
            yield entry


def load_documents(path: str | os.PathLike[str]) -> list[Document]:
    """Loads the documents of a file or folder, folders in sorted order.

    Raises:
      InputError: if the path does not exist, a single file is binary or empty, or a folder holds
        no text.
    """
    root = files.local_path(path)
    if not root.exists():
        raise InputError(f"there is no file or folder {path} to read a corpus from")
    if not root.is_dir():
        text = _read_text(root)
        if text is None:
            raise InputError(f"{path} is not UTF-8 text that can be read; convert it first")
        if not text.strip():
            raise InputError(f"{path} is empty; a corpus needs some text")
        return [parse_document(_readable(root.name), text)]
    try:
        next(root.iterdir(), None)
    except OSError as error:
        raise InputError(f"the folder {path} cannot be read: {error.strerror}") from error
    documents, skipped = [], []
    for file in _files_below(root):
        name = _readable("/".join(file.relative_to(root).parts))
        text = _read_text(file)
        if text is None:
            skipped.append(name)
        elif text.strip():
            documents.append(parse_document(name, text))
    if skipped:
        _log.warning(
            "left out %d files that are not readable text, such as %s", len(skipped), skipped[0]
        )
    if not documents:
        binary = f" ({len(skipped)} files there are not text or unreadable)" if skipped else ""
        raise InputError(f"the folder {path} holds no text to read{binary}")
    return documents
