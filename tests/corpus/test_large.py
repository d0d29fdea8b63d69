"""Corpora larger than what one wants in memory: read in pieces, drawn from disk."""

import random

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridges_jax.beginnings import Beginning
from cartridges_jax.corpus import Document, corpus_text, read_corpus, text_files
from cartridges_jax.corpus.documents import _stripped
from cartridges_jax.corpus.tokens import CorpusTokens
from cartridges_jax.errors import InputError

LINES = st.lists(st.sampled_from(["\r", "\n", "\r\n", "\r\r\n", " ", "a", "é", "# T", "😀"]))


@given(text=LINES.map("".join), block=st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_blocks_change_nothing(tmp_path_factory, text, block):
    path = tmp_path_factory.mktemp("x") / "a.md"
    path.write_bytes(text.encode())
    whole = _read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK", block)
        assert _read(path) == whole
    if whole:
        assert "\r" not in whole[1] and whole[1] == whole[1].strip()


def _read(path):
    try:
        [document] = read_corpus(path).documents
    except InputError:
        return None
    assert len(document.text) == document.length
    return document.title, document.text, document.sha256


@given(pieces=st.lists(st.text(" \nab", max_size=5)))
def test_stripping_pieces_strips_the_whole(pieces):
    assert "".join(_stripped(iter(pieces))) == "".join(pieces).strip()


def test_a_corpus_that_ends_where_it_is_cut():
    """Whole is what has nothing behind it, wherever the documents meet."""
    documents = [Document(f"{i}", "T", "x" * 20) for i in range(3)]
    whole = corpus_text(documents)[1]
    for length in range(1, len(whole) + 3):
        assert corpus_text(documents, length)[1] == whole[:length]
        assert corpus_text(documents[:1], length)[1] == ("x" * 20)[:length]


def test_a_file_that_is_gone(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    [document] = read_corpus(tmp_path).documents
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a.txt is no text that can be read \(cannot be read"):
        document.text  # noqa: B018 (reads the file)


def test_a_file_that_changes_while_it_is_studied(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    [document] = read_corpus(tmp_path).documents
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(InputError, match=r"a.txt has changed since it was first read"):
        document.text  # noqa: B018 (reads the file)


def test_tokens_on_disk_are_the_documents_own(trained, tmp_path):
    texts = ["Ada Brown lives in Oslo. " * 30, "x", "Bo Falk " * 200]
    documents = [Document(f"{i}", "t", text) for i, text in enumerate(texts)]
    tokenizer, folder = trained.tokenizer, epath.Path(tmp_path)
    tokens = CorpusTokens.of(documents, tokenizer, tokenizer.fingerprint, folder)
    wanted = [tokenizer.encode(text) for text in texts]
    assert [tokens.document(i).tolist() for i in range(3)] == wanted
    assert tokens.cumulated == np.cumsum([len(ids) for ids in wanted]).tolist()
    [path] = folder.iterdir()
    before = path.stat().mtime
    again = CorpusTokens.of(documents, tokenizer, tokenizer.fingerprint, folder)
    assert again.document(2).tolist() == wanted[2] and path.stat().mtime == before
    CorpusTokens.of(documents[1:], tokenizer, tokenizer.fingerprint, folder)
    assert len(list(folder.iterdir())) == 2  # another corpus has another file


def test_the_beginning_of_a_corpus_is_enough_for_what_needs_its_tokens(trained):
    rng = random.Random(0)
    words = "Ada lives in Oslo and works as a baker with Bo Falk".split()
    texts = [" ".join(rng.choices(words, k=4000)) for _ in range(3)]
    documents = [Document(f"d{i}", f"T{i}", text) for i, text in enumerate(texts)]
    for some in (documents[:1], documents):
        context = trained.template.render_context(*corpus_text(some))
        read = Beginning.of(trained, some, 200)
        assert not read.is_whole and len(read.context) < len(context) / 2
        assert read.context[:200] == context[:200]
        assert abs(read.corpus_tokens / len(context) - 1) < 0.1
        whole = Beginning.of(trained, some, len(context))
        assert whole.is_whole and whole.context == context
