"""Documents in, chunks out. Nothing here imports jax."""

from cartridges_jax.corpus.chunkers import Chunk, draw_chunk
from cartridges_jax.corpus.documents import (
    Corpus,
    Document,
    corpus_identity,
    corpus_length,
    corpus_text,
    load_documents,
    read_corpus,
)

__all__ = [
    "Chunk",
    "Corpus",
    "Document",
    "corpus_identity",
    "corpus_length",
    "corpus_text",
    "draw_chunk",
    "load_documents",
    "read_corpus",
]
