"""Documents and chunks."""

import collections
import errno
import os
import pathlib
import random

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridges_jax.corpus import draw_chunk, load_documents, read_corpus
from cartridges_jax.corpus.chunkers import draw_window, whole_passages
from cartridges_jax.errors import InputError


@given(
    st.integers(1, 400), st.integers(1, 60), st.integers(0, 60), st.randoms(use_true_random=False)
)
@settings(max_examples=300, deadline=None)
def test_windows_stay_inside_and_keep_their_width(length, low, extra, rng):
    window = draw_window(rng, length, low, low + extra)
    assert 0 <= window.start < window.stop <= length
    assert len(window) <= low + extra
    if length <= low:
        assert window == range(length)


def test_every_token_is_drawn_equally_often():
    """Edges as often as the middle: 60,000 windows of 8 to 24 tokens over 100 tokens."""
    rng, seen = random.Random(0), collections.Counter()
    for _ in range(60_000):
        seen.update(draw_window(rng, 100, 8, 24))
    mean = sum(seen.values()) / 100
    assert max(abs(seen[i] / mean - 1) for i in range(100)) < 0.06


TEXT = "Ada Brown lives in Oslo. She works as a baker.\nIra Falk lives in Rome. His room is B12."


@pytest.mark.parametrize("seed", range(30))
def test_chunks_are_whole_passages_of_their_window(trained, seed):
    ids = trained.tokenizer.encode(TEXT)
    chunk = draw_chunk(random.Random(seed), trained.tokenizer, "d", "t", ids, 5, 40)
    shown = trained.tokenizer.decode(ids[chunk.start : chunk.end]).strip()
    assert chunk.text and chunk.text in TEXT and chunk.text in shown
    assert len(chunk.text) >= 0.2 * len(shown) - 2


@pytest.mark.parametrize("text", ["漢字仮名交じり文を読む。" * 30, "Well 😀 done 🎉 now. " * 20])
def test_chunks_begin_and_end_with_whole_characters(trained, text):
    """The tokenizer spells these characters in bytes, a token each."""
    ids = trained.tokenizer.encode(text)
    for seed in range(30):
        chunk = draw_chunk(random.Random(seed), trained.tokenizer, "d", "t", ids, 20, 90)
        assert chunk.text and chunk.text in text


def test_no_chunk_is_blank(trained):
    ids = trained.tokenizer.encode("Ada Brown lives in Oslo." + "\n \n" * 400 + "The end.")
    for seed in range(30):
        assert draw_chunk(random.Random(seed), trained.tokenizer, "d", "t", ids, 5, 10).text
    blank = trained.tokenizer.encode("\n \n" * 40)
    with pytest.raises(InputError, match="d is blank in 10,000 places of 5 to 10 tokens"):
        draw_chunk(random.Random(0), trained.tokenizer, "d", "t", blank, 5, 10)


@pytest.mark.parametrize(
    ("text", "begins_inside", "ends_inside", "whole"),
    [
        ("half. A\nA two. A three. A four.\nhal", True, True, "A two. A three. A four."),
        ("half. A\nA two. A three. A four.\nhal", True, False, "A two. A three. A four.\nhal"),
        ("half. A\nA two. A three. A four.\nhal", False, True, "half. A\nA two. A three. A four."),
        ("half of it. One. Two. Three. And this is o", True, True, "One. Two. Three."),
        ("one long word after the other and no end", True, True,
         "one long word after the other and no end"),
        ("a. Break that is too far away to be cut to, and then nothing.\nx", True, False,
         "Break that is too far away to be cut to, and then nothing.\nx"),
        ("", True, True, ""),
    ],
)  # fmt: skip
def test_half_lines_and_half_sentences_are_cut_off(text, begins_inside, ends_inside, whole):
    assert whole_passages(text, begins_inside, ends_inside) == whole


def test_a_folder_is_read_in_order_and_without_what_is_not_text(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("# Title of a\n\nfirst\r\nline")
    (tmp_path / "sub" / "c.py").write_text("print('third')")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "video.mp4").write_bytes(b"text at first" + bytes(20_000))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    documents = load_documents(tmp_path)
    assert [(d.name, d.title, d.text) for d in documents] == [
        ("a.md", "Title of a", "first\nline"),
        ("b.txt", "b.txt", "second"),
        ("sub/c.py", "sub/c.py", "print('third')"),
    ]


def test_a_comment_is_no_title_and_a_heading_is(tmp_path):
    for name in ("train.py", "notes", "notes.md"):
        (tmp_path / name).write_text("# Copyright\nthe rest")
    titles = [(d.title, d.text) for d in load_documents(tmp_path)]
    assert titles == [
        ("Copyright", "the rest"),
        ("Copyright", "the rest"),
        ("train.py", "# Copyright\nthe rest"),
    ]


def test_names_need_not_be_utf8(tmp_path):
    (epath.Path(tmp_path) / os.fsdecode(b"caf\xe9.txt")).write_text("coffee")
    [document] = load_documents(tmp_path)
    assert document.name == "caf\\xe9.txt" and document.sha256


def test_folders_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "closed").mkdir()
    listed = pathlib.Path.iterdir

    def refusing(folder):  # as for anybody but root, who may read everything
        if folder.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(pathlib.Path, "iterdir", refusing)
    read = read_corpus(tmp_path)
    assert len(read.documents) == 1 and read.summary.left_out == {"cannot be read": ["closed"]}
    with pytest.raises(InputError, match="closed cannot be read: Permission denied"):
        load_documents(tmp_path / "closed")


def test_hashes_follow_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    [before] = load_documents(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("two")
    [after] = load_documents(tmp_path / "a.txt")
    assert before.sha256 != after.sha256


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "there is no file or folder"),
        (lambda p: p.write_bytes(b"\0\1"), r"is no text that can be read \(not text\)"),
        (lambda p: p.write_bytes(b"%PDF-1.4"), r"\(PDF\); convert it to UTF-8 text"),
        (lambda p: p.write_text("  "), "is empty"),
        (lambda p: p.mkdir(), "holds no text"),
        (lambda p: os.mkfifo(p), "is neither a file nor a folder"),
    ],
)
def test_bad_corpora_are_one_sentence(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(InputError, match=words):
        load_documents(tmp_path / "x")
