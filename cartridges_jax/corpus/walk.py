"""Which files of a folder are a corpus: every one by name, with the reason why it is left out.

What a person would not call the text of a folder is left out: what .gitignore names (git's own
rules, by `pathspec`), hidden files, dependencies and caches, lock files, what tools made of others.
Links are followed behind everything else, so a file has its own name where it has one; what was
found before, and what leads back up, is not read twice.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import pathspec

IGNORED, HIDDEN = "ignored by .gitignore", "hidden"
DEPENDENCY, LOCK, MADE = "dependencies and caches", "lock files", "made by tools"
AGAIN, LOOP, BROKEN = "found before", "links that lead back", "broken links"
CLOSED, SPECIAL = "cannot be read", "no regular files"
_DEPENDENCIES = frozenset({"__pycache__", "node_modules", "site-packages", "bower_components"})
_LOCKS = frozenset({"package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "go.sum"})
_MADE = (".min.js", ".min.css", ".map", ".pyc", ".ipynb_checkpoints")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file; `why` says why it is left out, "" if it may be read."""

    name: str  # path below the corpus, in characters
    path: pathlib.Path
    why: str = ""


@dataclasses.dataclass(frozen=True)
class _Rules:
    """A folder's .gitignore."""

    folder: pathlib.Path
    spec: pathspec.GitIgnoreSpec

    @classmethod
    def of(cls, folder: pathlib.Path) -> "list[_Rules]":
        try:
            lines = (folder / ".gitignore").read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        return [cls(folder, pathspec.GitIgnoreSpec.from_lines(lines))]

    def ignores(self, path: pathlib.Path, is_folder: bool) -> bool | None:
        """Whether it says so; None if it says nothing."""
        name = path.relative_to(self.folder).as_posix() + "/" * is_folder
        return self.spec.check_file(name).include


class _Walk:
    def __init__(self, root: pathlib.Path):
        self._root = root
        self._seen: set[tuple[int, int]] = set()  # files and folders, by device and number
        self._above = {_key(p) for p in root.resolve().parents}
        self._links: list[tuple[pathlib.Path, Sequence[_Rules], str]] = []

    def entries(self) -> Iterator[Entry]:
        self._seen.add(_key(self._root))
        yield from self._below(self._root, (), "")
        for path, rules, why in self._links:  # grows while links to folders with links are followed
            yield from self._link(path, rules, why)

    def _below(self, folder: pathlib.Path, rules: Sequence[_Rules], why: str) -> Iterator[Entry]:
        """Everything in a folder; all of it for one reason if that is left out."""
        try:
            paths = sorted(folder.iterdir())
        except OSError:
            yield self._entry(folder, CLOSED)
            return
        if not why:
            rules = [*rules, *_Rules.of(folder)]
            if (folder / "pyvenv.cfg").exists():
                why = DEPENDENCY
        for path in paths:
            is_folder = path.is_dir()
            reason = why or _reason(path, is_folder, rules)
            if path.is_symlink():
                self._links.append((path, rules, reason))
            elif is_folder:
                self._seen.add(_key(path))
                yield from self._below(path, rules, reason)
            else:
                yield self._file(path, reason)

    def _link(self, path: pathlib.Path, rules: Sequence[_Rules], why: str) -> Iterator[Entry]:
        try:
            key = _key(path)
        except OSError:
            yield self._entry(path, why or BROKEN)
            return
        if why or not path.is_dir():
            yield self._entry(path, why) if why else self._file(path, "")
        elif key in self._above or key == _key(self._root):
            yield self._entry(path, LOOP)
        elif key in self._seen:
            yield self._entry(path, AGAIN)
        else:
            self._seen.add(key)
            yield from self._below(path, (), "")  # another tree, with rules of its own

    def _file(self, path: pathlib.Path, why: str) -> Entry:
        if not why and not path.is_file():
            why = SPECIAL
        if not why:
            key = _key(path)
            why = AGAIN if key in self._seen else ""
            self._seen.add(key)
        return self._entry(path, why)

    def _entry(self, path: pathlib.Path, why: str) -> Entry:
        return Entry(readable(path.relative_to(self._root).as_posix()), path, why)


def readable(name: str) -> str:
    """A file's name as text, whatever bytes it is of; two names stay two."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def walk(root: pathlib.Path) -> list[Entry]:
    """Every file below a folder, by name; a folder that may not be listed is one itself.

    Time and memory grow with the number of files; none is opened but .gitignore.
    """
    return sorted(_Walk(root).entries(), key=lambda entry: entry.path.parts)


def _key(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _reason(path: pathlib.Path, is_folder: bool, rules: Sequence[_Rules]) -> str:
    name = path.name
    if name.startswith("."):
        return HIDDEN
    # To git a link is a file, whatever it leads to.
    told = (rule.ignores(path, is_folder and not path.is_symlink()) for rule in reversed(rules))
    if next((answer for answer in told if answer is not None), False):
        return IGNORED
    if is_folder:
        return DEPENDENCY if name in _DEPENDENCIES or name.endswith(".egg-info") else ""
    if name in _LOCKS or name.endswith((".lock", ".lockb")):
        return LOCK
    return MADE if name.lower().endswith(_MADE) else ""
