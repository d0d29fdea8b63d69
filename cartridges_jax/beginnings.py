"""The beginning of a corpus, for those who read only so many tokens of it.

A corpus may be larger than memory; a cartridge's first tokens, a truncated context and a window
are not. Cost grows with the tokens that are asked for.
"""

import dataclasses
from collections.abc import Sequence

from cartridges_jax.corpus import Document, corpus_length, corpus_text
from cartridges_jax.language_model import LanguageModel

CHARACTERS = 16  # of a token, to begin with; if they are too few, twice as many
MARGIN = 64  # tokens beyond: the last ones of a cut text may be others than the whole text's


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Title and text of a corpus as one context, whole or cut behind enough tokens."""

    title: str
    text: str
    context: list[int]  # as the model reads it
    is_whole: bool
    corpus_tokens: int  # of the whole; estimated where it was not read

    @classmethod
    def of(
        cls, model: LanguageModel, documents: Sequence[Document], num_tokens: int
    ) -> "Beginning":
        """Reads more than `num_tokens` tokens of a corpus, or all of it."""
        length = CHARACTERS * (num_tokens + MARGIN)
        while True:
            title, text = corpus_text(documents, length)
            context = model.template.render_context(title, text)
            if len(text) < length:
                return cls(title, text, context, True, len(context))
            if len(context) > num_tokens + MARGIN:
                share = corpus_length(documents) / len(text)
                return cls(
                    title, text, context, False, max(len(context), int(share * len(context)))
                )
            length *= 2

    def told_size(self) -> str:
        """The size of the corpus, for people."""
        about = "" if self.is_whole else "about "
        return f"{about}{self.corpus_tokens:,} tokens"
