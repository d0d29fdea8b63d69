"""Training rows of plain text: the next-token baseline that self-study is compared with."""

import os
import random
from collections.abc import Sequence

import numpy as np

from cartridges_jax import files
from cartridges_jax.corpus import Document, corpus_identity
from cartridges_jax.corpus.chunkers import draw_window
from cartridges_jax.distillation.targets import SHARDS, TARGETS_ON, encode_record, row_sizes
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.shards import ShardSet


def text_targets(
    model: LanguageModel,
    documents: Sequence[Document],
    out: str | os.PathLike[str],
    *,
    num_rows: int,
    min_tokens: int,
    max_tokens: int,
    seed: int = 0,
) -> ShardSet:
    """Writes random windows of plain text whose target is the next token: the baseline.

    The records have the form of `score_targets`, with one id of probability 1 at each position.
    """
    inputs = {
        "corpus": corpus_identity(documents),
        "targets_on": TARGETS_ON,
        "model": model.fingerprint,
        "rows": num_rows,
        "window": [min_tokens, max_tokens],
        "seed": seed,
    }
    targets = ShardSet.open(files.output_folder(out), SHARDS, inputs)
    if targets.units:
        return targets
    rng = random.Random(f"text {seed}")
    tokens = [model.tokenizer.encode(d.text) for d in documents]
    records = []
    for _ in range(num_rows):
        text = rng.choices(tokens, [len(t) for t in tokens])[0]
        window = draw_window(rng, len(text), min_tokens, max_tokens)
        row = np.asarray(text[window.start : window.stop], np.int32)
        index = np.arange(len(row) - 1)
        zeros = np.zeros((len(index), 1), np.float32)
        records.append(encode_record(row, index, row[1:, None], zeros))
    targets.write(0, records, **row_sizes(records))
    return targets
