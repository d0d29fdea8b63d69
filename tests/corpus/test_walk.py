"""Which files of a folder are read: every file once, .gitignore as git itself understands it."""

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest

from cartridges_jax.corpus import read_corpus
from cartridges_jax.corpus.walk import (
    AGAIN,
    BROKEN,
    CLOSED,
    DEPENDENCY,
    HIDDEN,
    IGNORED,
    LOOP,
    OURS,
    readable,
    walk,
)
from cartridges_jax.errors import InputError

PATTERNS = (
    "*.log", "build/", "/top.txt", "a/**/c", "!keep.log", "docs/*.txt", "**/deep", "# a comment",
    "temp?", "[ab].md", "\\#odd", "name with space", "sub", "*.t*", "!/a/keep.txt", "a/b/", "  ",
)  # fmt: skip
NAMES = ("a", "b", "c", "deep", "build", "sub", "docs", "name with space")
FILES = ("x.log", "keep.log", "top.txt", "a.md", "temp1", "#odd", "keep.txt", "c", "main.py")


def random_tree(rng, root, count):
    """Files in folders three deep, with a .gitignore here and there."""
    folders = [root]
    for _ in range(count // 5):
        folder = rng.choice(folders) / rng.choice(NAMES)
        if len(folder.relative_to(root).parts) <= 3 and not folder.is_file():
            folder.mkdir(exist_ok=True)
            folders.append(folder)
    for _ in range(count):
        path = rng.choice(folders) / rng.choice(FILES)
        if not path.is_dir():
            path.write_text(f"text of {path.name}")
    for folder in rng.sample(folders, min(len(folders), 3)):
        lines = rng.sample(PATTERNS, rng.randrange(1, 5))
        (folder / ".gitignore").write_text("\n".join(lines) + "\n")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("seed", range(25))
def test_gitignore_is_what_git_says(tmp_path, seed):
    random_tree(random.Random(seed), tmp_path, 40)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["git", "-c", "core.quotepath=false", "ls-files", "-z", "--others", "--exclude-standard"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    wanted = {name for name in listed.stdout.decode().split("\0") if name}
    got = {entry.name for entry in walk(tmp_path) if not entry.why}
    assert got == {name for name in wanted if not name.rpartition("/")[2].startswith(".")}


def every_file(root):
    """What lies below a folder, links as one each."""
    found = []
    for folder, names, others in os.walk(root):
        links = [name for name in names if (pathlib.Path(folder) / name).is_symlink()]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in [*links, *others]]
    return sorted(found)


def write_source_repository(rng, root):
    """300 files as a real repository has them."""
    texts = {
        "py": "def f():\n    return 1\n", "md": "# Title\n\nSome words.\n", "txt": "words\n",
        "toml": "[tool]\n", "html": "<p>words</p>\n",
    }  # fmt: skip
    for i in range(130):
        kind = rng.choice(list(texts))
        path = root / rng.choice(("src", "docs", "tests", "src/inner")) / f"f{i}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[kind] + f"{i}\n")
    odd = {
        "utf16.txt": "words of this file".encode("utf-16"),
        "utf16be.txt": b"\xfe\xff" + "words".encode("utf-16-be"),
        "utf32.txt": "words".encode("utf-32"),
        "bom.txt": b"\xef\xbb\xbfwords",
        "latin.txt": "é".encode("latin-1"),
        "cr.txt": b"# Head\rone\rtwo\r",
        "crcrlf.txt": b"one\r\r\ntwo",
        "empty.txt": b"",
        "blank.txt": b" \n\t\n",
        "scan.pdf": b"%PDF-1.4\nascii all the way",
        "letter.rtf": b"{\\rtf1 hello}",
        "plot.ps": b"%!PS-Adobe",
        "logo.svg": b"<svg/>",
        "package-lock.json": b"{}",
        "poetry.lock": b"x",
        "app.min.js": b"x",
        ".hidden": b"x",
        ".gitignore": b"out/\n*.log\nvenv/\n",
        "odd\xff.txt".encode("latin-1"): b"words",
    }
    for name, data in odd.items():
        (root / os.fsdecode(name)).write_bytes(data)
    for i in range(20):
        (root / f"image{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
        (root / f"archive{i}.zip").write_bytes(b"PK\3\4" + bytes(rng.randbytes(40)) + b"\0")
    for i in range(10):
        cells = [
            {"cell_type": "markdown", "source": ["# Notes\n", f"about {i}"]},
            {"cell_type": "code", "source": "print(1)", "outputs": [{"data": "iVBOR" * 5000}]},
        ]
        (root / f"book{i}.ipynb").write_text(json.dumps({"cells": cells}))
    (root / "damaged.ipynb").write_text("{")
    for folder, count in (("venv/lib", 60), ("out", 20), (".git/objects", 20), ("env", 1)):
        for i in range(count):
            path = root / folder / f"g{i}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x = 1\n")
    (root / "env" / "pyvenv.cfg").write_text("home = /usr\n")
    (root / "linked").symlink_to(root / "src")
    (root / "loop").symlink_to(root)
    (root / "src" / "up").symlink_to("../..")
    (root / "again.py").symlink_to(next((root / "src").glob("*.py")))
    (root / "nowhere").symlink_to("not/there")
    os.link(next((root / "docs").glob("f*")), root / "hard.txt")
    os.mkfifo(root / "pipe")


def test_every_file_of_a_source_repository_is_told_once(tmp_path):
    root, outside = tmp_path / "repo", tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "far.md").write_text("# Far\n\nwords")
    (outside / "back").symlink_to(root)
    root.mkdir()
    write_source_repository(random.Random(0), root)
    files = every_file(root)
    assert len(files) >= 300
    (root / "outside").symlink_to(outside)
    corpus = read_corpus(root)
    summary = corpus.summary
    told = collections.Counter(
        [*summary.lengths, *(n for ns in summary.left_out.values() for n in ns)]
    )
    names = [readable(name) for name in files]
    assert told == collections.Counter([*names, "outside/far.md", "outside/back"])
    reason = {name: why for why, ns in summary.left_out.items() for name in ns}
    assert reason["venv/lib/g0.py"] == reason["out/g3.py"] == IGNORED
    assert reason["env/g0.py"] == DEPENDENCY and reason[".git/objects/g1.py"] == HIDDEN
    assert reason["loop"] == reason["src/up"] == reason["outside/back"] == LOOP
    assert reason["linked"] == reason["again.py"] == AGAIN and reason["nowhere"] == BROKEN
    assert reason["scan.pdf"] == "PDF" and reason["letter.rtf"] == "RTF"
    assert reason["latin.txt"] == "not UTF-8" and reason["blank.txt"] == "empty"
    assert reason["image3.png"] == reason["archive3.zip"] == "not text"
    assert reason["poetry.lock"] == "lock files" and reason["pipe"] == "no regular files"
    assert reason["damaged.ipynb"] == "damaged notebooks"
    texts = {d.name: d for d in corpus.documents}
    assert {texts[n].text for n in ("utf16be.txt", "utf32.txt", "bom.txt", "odd\\xff.txt")} == {
        "words"
    }
    assert (texts["cr.txt"].title, texts["cr.txt"].text) == ("Head", "one\ntwo")
    assert texts["crcrlf.txt"].text == "one\ntwo"
    assert texts["book1.ipynb"].title == "Notes"
    assert texts["book1.ipynb"].text == "about 1\n\n```\nprint(1)\n```"
    assert sum(summary.by_kind().values()) == sum(len(d.text) for d in corpus.documents)
    assert [d.name for d in corpus.documents] == sorted(texts, key=lambda n: n.split("/"))


def test_a_link_to_a_folder_is_followed(tmp_path):
    """As a corpus that is a folder of links to where the texts lie."""
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i}")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "linked").symlink_to(tmp_path / "texts")
    (corpus / "once more").symlink_to(tmp_path / "texts")
    read = read_corpus(corpus)
    assert [d.name for d in read.documents] == [f"linked/{i}.txt" for i in range(3)]
    assert read.summary.left_out == {AGAIN: ["once more"]}


def test_an_ignored_folder_can_be_named_itself(tmp_path):
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("words")
    assert [d.name for d in read_corpus(tmp_path / "data").documents] == ["a.txt"]
    assert IGNORED in str(read_error(tmp_path))


def read_error(path):
    with pytest.raises(InputError) as caught:
        read_corpus(path)
    return caught.value


def test_lines_that_git_passes_over(tmp_path):
    (tmp_path / ".gitignore").write_text("!\n\\\n[\n*.log\n")
    for name in ("a.log", "a.txt"):
        (tmp_path / name).write_text("words")
    assert [entry.name for entry in walk(tmp_path) if not entry.why] == ["a.txt"]
    (tmp_path / ".gitignore").unlink()
    os.mkfifo(tmp_path / ".gitignore")  # is not read
    assert [e.name for e in walk(tmp_path) if not e.why] == ["a.log", "a.txt"]


def test_odd_links_and_deep_folders(tmp_path):
    (tmp_path / "long").symlink_to("x" * 300)
    deep = tmp_path / ("d/" * 1100)  # deeper than Python's recursion, which pytest cleans up with
    subprocess.run(["mkdir", "-p", deep], check=True)
    try:
        (deep / "a.txt").write_text("words")
        reasons = {entry.name: entry.why for entry in walk(tmp_path)}
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
    assert reasons == {"long": BROKEN, "d/" * 1100 + "a.txt": ""}


def test_a_link_to_what_is_left_out_is_read(tmp_path):
    (tmp_path / ".hid").mkdir()
    (tmp_path / ".hid" / "a.txt").write_text("words")
    (tmp_path / "shown").symlink_to(".hid")
    assert [e.name for e in walk(tmp_path) if not e.why] == ["shown/a.txt"]


def test_what_this_package_writes_is_no_text_of_a_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    for name in ("study/conversations.manifest.jsonl", "demo/data/conversations.manifest.jsonl",
                 "run/checkpoints/inputs.json", "eval/answers.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
        (tmp_path / name.split("/")[0] / "report.html").write_text("<p>")
    corpus = read_corpus(tmp_path)
    assert [d.name for d in corpus.documents] == ["a.txt"]
    assert list(corpus.summary.left_out) == [OURS]


def test_two_names_stay_two(tmp_path):
    names = [os.fsdecode(b"a\xff.txt"), "a\\xff.txt", "a\x1b[2J.txt", "a\nb.txt"]
    for name in names:
        (tmp_path / name).write_text("words")
    summary = read_corpus(tmp_path).summary
    assert len(summary.lengths) == len(names)
    assert all(name.isprintable() for name in summary.lengths)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_folders_that_nobody_may_look_into(tmp_path):
    """In a process without rights: a sentence in the summary for each, no traceback."""
    for name, mode in (("listed", 0o444), ("closed", 0o000), ("open", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("words")
        (tmp_path / name / "a.txt").chmod(0o644)
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("closed/a.txt")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from cartridges_jax.corpus import read_corpus\n"
        "read_corpus(sys.argv[2] + '/tests/data')\n"  # imports what it needs
        "os.setuid(65534)\n"
        "print(sorted(read_corpus(sys.argv[1]).summary.left_out.items()))"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != pathlib.Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    root = str(pathlib.Path(__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), root], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "listed/a.txt" in done.stdout and "closed" in done.stdout and CLOSED in done.stdout


@pytest.mark.parametrize("source", ["\\ud83d", "\\u0000"])
def test_a_notebook_of_no_text(tmp_path, source):
    cells = '{"cells": [{"cell_type": "markdown", "source": "SOURCE"}]}'.replace("SOURCE", source)
    (tmp_path / "a.ipynb").write_text(cells)
    (tmp_path / "b.txt").write_text("words")
    assert read_corpus(tmp_path).summary.left_out == {"damaged notebooks": ["a.ipynb"]}


def test_the_summary_is_for_people(tmp_path):
    (tmp_path / "long.md").write_text("words " * 50)
    (tmp_path / "b.py").write_text("x = 1")
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(bytes(10))
    assert read_corpus(tmp_path).lines() == [
        "corpus: 2 documents, 304 characters (.md 98 %, .py 2 %)",
        "largest: long.md 299, b.py 5",
        "left out: 5 not text (0.png, 1.png, 2.png, ...)",
    ]
    assert read_corpus(tmp_path / "b.py").lines() == []
