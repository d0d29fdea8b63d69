"""Documents in, chunks out. Nothing here imports jax."""

from cartridges_jax.corpus.chunkers import Chunk, draw_chunk
from cartridges_jax.corpus.documents import Document, load_documents

__all__ = ["Chunk", "Document", "draw_chunk", "load_documents"]
