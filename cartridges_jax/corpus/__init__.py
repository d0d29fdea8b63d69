"""Documents in, chunks out. Nothing here imports jax."""

from cartridges_jax.corpus.chunkers import Chunk, draw_chunk
from cartridges_jax.corpus.documents import (
    Document,
    corpus_identity,
    corpus_text,
    load_documents,
)

__all__ = ["Chunk", "Document", "corpus_identity", "corpus_text", "draw_chunk", "load_documents"]
