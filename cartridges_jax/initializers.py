"""Start values of a cartridge: what the slots hold before training.

All but `random_vectors` are real keys and values of some text. On LongHealth the paper reports
55 % accuracy from the corpus's first tokens, 51 % from unrelated text and 30 % from random vectors
(arXiv 2506.06266, section 4.3). Slot 0 is always the real KV of the first context token, the
attention sink.
"""

import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cartridges_jax.beginnings import Beginning
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel

SPAN_TOKENS = 64  # length of a sampled span
SAMPLE_TOKENS = 4096  # of a corpus that tell mean and spread of real KV
SPANS_FROM = 1 << 20  # tokens of a corpus that spans are drawn from, at most


def cut_context(
    model: LanguageModel, title: str, text: str, num_slots: int, what: str = "the document"
) -> np.ndarray:
    """Returns the rendered context cut to `num_slots` tokens, its closing tokens kept.

    `what` names the text in the error.

    Raises:
      InputError: if the context has fewer tokens than that.
    """
    context = model.template.render_context(title, text)
    closing = model.template.context_closing()
    if len(context) < num_slots:
        raise InputError(
            f"{what} has {len(context)} tokens as a context, fewer than the {num_slots} "
            "slots asked for; a cartridge is meant to be smaller than its text, lower num_slots"
        )
    if num_slots <= len(closing):
        raise InputError(f"{num_slots=} leaves no room beside {len(closing)} closing tokens")
    return np.asarray(context[: num_slots - len(closing)] + closing, np.int32)


def first_tokens(
    model: LanguageModel, documents: Sequence[Document], num_slots: int, num_frozen: int
) -> Cartridge:
    """The KV of the corpus's first tokens."""
    read = Beginning.of(model, documents, num_slots)
    return model.kv_as_cartridge(cut_context(model, read.title, read.text, num_slots), num_frozen)


def given_text(model: LanguageModel, text: str, num_slots: int, num_frozen: int) -> Cartridge:
    """The KV of the first tokens of any text."""
    return model.kv_as_cartridge(cut_context(model, "", text, num_slots, "init_text"), num_frozen)


def sampled_spans(
    model: LanguageModel, documents: Sequence[Document], num_slots: int, num_frozen: int, seed: int
) -> Cartridge:
    """The KV of random spans of the corpus, read one after another."""
    rng = random.Random(f"spans {seed}")
    # Of a large corpus, from its beginning: all of it would be encoded for a few spans.
    read = Beginning.of(model, documents, SPANS_FROM)
    tokens = [model.tokenizer.encode(read.text)]
    if read.is_whole:
        tokens = [model.tokenizer.encode(d.text) for d in documents]
    total = sum(map(len, tokens))
    if total < num_slots:
        raise InputError(
            f"the corpus has {total} tokens, fewer than the {num_slots} slots asked for"
        )
    head, closing = model.template.context_head(), model.template.context_closing()
    room = num_slots - len(head) - len(closing)
    if room < 1:
        raise InputError(f"{num_slots=} leaves no room beside the context's frame")
    spans: list[int] = []
    while len(spans) < room:
        source = rng.choices(tokens, [len(t) for t in tokens])[0]
        start = rng.randrange(max(1, len(source) - SPAN_TOKENS + 1))
        spans += source[start : start + SPAN_TOKENS]
    ids = np.asarray([*head, *spans[:room], *closing], np.int32)
    return model.kv_as_cartridge(ids, num_frozen)


def random_vectors(
    model: LanguageModel, documents: Sequence[Document], num_slots: int, num_frozen: int, seed: int
) -> Cartridge:
    """Normal vectors with the mean and spread of real KV in each layer, head and dimension."""
    read = Beginning.of(model, documents, min(model.config.window, SAMPLE_TOKENS))
    real = model.kv_as_cartridge(np.asarray(read.context, np.int32)[:SAMPLE_TOKENS])
    slots = []
    for key, values in zip(
        jax.random.split(jax.random.key(seed)), (real.keys, real.values), strict=True
    ):
        L, _, K, H = values.shape
        mean, spread = values.mean(1, keepdims=True), values.std(1, keepdims=True)
        drawn = mean + spread * jax.random.normal(key, (L, num_slots, K, H), values.dtype)
        slots.append(jnp.concatenate([values[:, :num_frozen], drawn[:, num_frozen:]], axis=1))
    return Cartridge(*slots, num_frozen=num_frozen)
