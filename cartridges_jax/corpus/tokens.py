"""The tokens of a corpus on disk: chunks are drawn from there, whatever its size.

One file of uint32 in the folder of the conversations: the tokens of all documents, and behind them
where each document ends. It can be made again at any time, so it is no result.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from cartridges_jax import files
from cartridges_jax.config import digest
from cartridges_jax.corpus.chunkers import Tokens
from cartridges_jax.corpus.documents import Document, corpus_identity, corpus_length
from cartridges_jax.metrics import progress


@dataclasses.dataclass(frozen=True)
class CorpusTokens:
    """The tokens of the documents of a corpus, in order: uint32, mapped from the file.

    Memory is what is looked at, and eight bytes a document.
    """

    path: epath.Path
    count: int  # documents

    @classmethod
    def of(
        cls, documents: Sequence[Document], tokenizer: Tokens, fingerprint: str, folder: epath.Path
    ) -> "CorpusTokens":
        """Takes the file of these documents in a folder; writes it if there is none.

        Memory is bounded: a document is encoded a piece at a time.

        Args:
          documents: of the corpus.
          tokenizer: encodes them.
          fingerprint: of the tokenizer.
          folder: of the file.

        Raises:
          InputError: if the disk is full, or a document has changed since it was read.
        """
        of_what = digest([corpus_identity(documents), fingerprint])
        path = folder / f"tokens-{of_what[:16]}.u32"
        if not path.exists():
            with files.writing(path):
                temporary = files.temporary_name(path)
                with temporary.open("wb") as file:
                    ends, total = [], 0
                    for block in _encoded(documents, tokenizer):
                        if block is None:
                            ends.append(total)
                        else:
                            total += len(block)
                            file.write(np.asarray(block, "<u4").tobytes())
                    file.write(np.asarray(ends, "<u8").tobytes())
                files.commit(temporary, path)
        return cls(path, len(documents))

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Where each document ends [documents], tokens."""
        size = self.path.stat().length
        with self.path.open("rb") as file:
            file.seek(size - 8 * self.count)
            return np.frombuffer(file.read(), "<u8").astype(np.int64)

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        total = int(self.ends[-1])
        if not total:
            return np.zeros(0, np.uint32)
        return np.memmap(self.path, "<u4", "r", shape=(total,))

    @functools.cached_property
    def cumulated(self) -> list[int]:
        """`ends` as numbers, the weights of drawing a document in proportion to its length."""
        return self.ends.tolist()

    def document(self, index: int) -> np.ndarray:
        """The tokens of one document, as they lie on disk."""
        start = self.ends[index - 1] if index else 0
        return self._tokens[start : self.ends[index]]


def _encoded(documents: Sequence[Document], tokenizer: Tokens) -> Iterator[list[int] | None]:
    """Pieces of tokens, and None at the end of each document."""
    with progress(corpus_length(documents), "read", "char", scaled=True) as bar:
        for document in documents:
            after = "nothing"
            for piece in document.pieces():
                yield tokenizer.encode(piece, after=after)
                bar.update(len(piece))
                after = "text"
            yield None
