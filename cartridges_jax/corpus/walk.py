"""Which files of a folder are a corpus: every one by name, with the reason why it is left out.

What a person would not call the text of a folder is left out: what .gitignore names (git's own
rules, by `pathspec`), hidden files, dependencies and caches, lock files, what tools and this
package made of others. Links are followed behind everything else, so a file has its own name where
it has one; what was found before, and what leads back up, is not read twice.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import pathspec
from pathspec.patterns.gitignore import GitIgnorePatternError

IGNORED, HIDDEN = "ignored by .gitignore", "hidden"
DEPENDENCY, LOCK, MADE = "dependencies and caches", "lock files", "made by tools"
OURS = "studies and cartridges"
AGAIN, LOOP, BROKEN = "found before", "links that lead back", "broken links"
CLOSED, SPECIAL = "cannot be read", "no regular files"
_DEPENDENCIES = frozenset({"__pycache__", "node_modules", "site-packages", "bower_components"})
_LOCKS = frozenset({"package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "go.sum"})
_MADE = (".min.js", ".min.css", ".map", ".pyc")
# A folder that holds one of these is an output of this package.
_OURS = (
    "conversations.manifest.jsonl",
    "targets.manifest.jsonl",
    "data/conversations.manifest.jsonl",
    "checkpoints/inputs.json",
    "answers.jsonl",
)


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
        path = folder / ".gitignore"
        try:
            if not os.path.isfile(path):
                return []
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        return [cls(folder, pathspec.GitIgnoreSpec.from_lines(filter(_is_pattern, lines)))]

    def ignores(self, path: pathlib.Path, is_folder: bool) -> bool | None:
        """Whether it says so; None if it says nothing."""
        name = path.relative_to(self.folder).as_posix() + "/" * is_folder
        return self.spec.check_file(name).include


def _is_pattern(line: str) -> bool:
    """Whether a line can be read as a pattern; git passes over what cannot."""
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except GitIgnorePatternError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder to be looked into; all of it is left out for one reason if there is one."""

    path: pathlib.Path
    rules: Sequence[_Rules]
    why: str


class _Walk:
    def __init__(self, root: pathlib.Path):
        self._root = root
        self._seen: set[tuple[int, int]] = set()  # what is read, by device and number
        self._above = {_key(p) for p in root.resolve().parents}
        self._links: list[_Folder] = []  # or files

    def entries(self) -> Iterator[Entry]:
        self._seen.add(_key(self._root))
        yield from self._below(_Folder(self._root, (), ""))
        for link in self._links:  # grows while links to folders with links are followed
            yield from self._link(link)

    def _below(self, start: _Folder) -> Iterator[Entry]:
        """Everything in a folder and its folders."""
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            try:
                paths = sorted(folder.path.iterdir())
            except OSError:
                yield self._entry(folder.path, CLOSED)
                continue
            rules, why = folder.rules, folder.why
            if not why:
                rules = [*rules, *_Rules.of(folder.path)]
                why = "" if folder.path == self._root else _reason_within(folder.path)
            for path in paths:
                is_folder = _is_folder(path)
                reason = why or _reason(path, is_folder, rules)
                if _is_link(path):
                    self._links.append(_Folder(path, rules, reason))
                elif is_folder:
                    if not reason:
                        self._see(path)
                    waiting.append(_Folder(path, rules, reason))
                else:
                    yield self._file(path, reason)

    def _link(self, link: _Folder) -> Iterator[Entry]:
        if link.why:
            yield self._entry(link.path, link.why)
            return
        try:
            key = _key(link.path)
        except OSError:
            yield self._entry(link.path, BROKEN)
            return
        if not _is_folder(link.path):
            yield self._file(link.path, "")
        elif key in self._above or key == _key(self._root):
            yield self._entry(link.path, LOOP)
        elif key in self._seen:
            yield self._entry(link.path, AGAIN)
        else:
            self._seen.add(key)
            yield from self._below(_Folder(link.path, (), ""))  # another tree, with its own rules

    def _see(self, path: pathlib.Path) -> bool:
        """Whether a file or folder is seen for the first time."""
        try:
            key = _key(path)
        except OSError:
            return True  # told when it is opened
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def _file(self, path: pathlib.Path, why: str) -> Entry:
        if not why and not os.path.isfile(path):
            closed = not os.access(path.parent, os.X_OK)
            why = CLOSED if closed else SPECIAL
        if not why and not self._see(path):
            why = AGAIN
        return self._entry(path, why)

    def _entry(self, path: pathlib.Path, why: str) -> Entry:
        return Entry(readable(path.relative_to(self._root).as_posix()), path, why)


def readable(name: str) -> str:
    """A file's name as text that can be shown, whatever bytes it is of; two names stay two."""
    text = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    shown = text.decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda m: f"\\x{ord(m[0]):02x}", shown)


def walk(root: pathlib.Path) -> list[Entry]:
    """Every file below a folder, by name; a folder that may not be listed is one itself.

    Time and memory grow with the number of files; none is opened but .gitignore.
    """
    return sorted(_Walk(root).entries(), key=lambda entry: entry.path.parts)


def _key(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _is_link(path: pathlib.Path) -> bool:
    return os.path.islink(path)


def _is_folder(path: pathlib.Path) -> bool:
    return os.path.isdir(path)


def _reason(path: pathlib.Path, is_folder: bool, rules: Sequence[_Rules]) -> str:
    """Why a file or folder is left out by its name."""
    name = path.name
    if name.startswith("."):
        return HIDDEN
    # To git a link is a file, whatever it leads to.
    told = (rule.ignores(path, is_folder and not _is_link(path)) for rule in reversed(rules))
    if next((answer for answer in told if answer is not None), False):
        return IGNORED
    if is_folder:
        return DEPENDENCY if name in _DEPENDENCIES or name.endswith(".egg-info") else ""
    if name in _LOCKS or name.endswith((".lock", ".lockb")):
        return LOCK
    if name.endswith(".manifest.jsonl"):
        return OURS
    return MADE if name.lower().endswith(_MADE) else ""


def _reason_within(folder: pathlib.Path) -> str:
    """Why a folder is left out by what it holds."""
    if os.path.exists(folder / "pyvenv.cfg"):
        return DEPENDENCY
    return OURS if any(os.path.exists(folder / name) for name in _OURS) else ""
