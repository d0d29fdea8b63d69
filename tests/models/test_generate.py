"""Generation does not depend on batches, padding or meshes."""

import numpy as np
import pytest

from cartridges_jax.errors import InputError
from tests.conftest import make_tiny_model

PROMPTS = ["Who is it?", "Where does Ada Brown live, and since when?", "x", "Name all of them."]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_does_not_depend_on_its_neighbours(tiny, temperature):
    options = {"max_new_tokens": 12, "temperature": temperature}
    together = tiny.generate(PROMPTS, seeds=[3, 1, 4, 1], **options)
    for prompt, seed, want in zip(PROMPTS, [3, 1, 4, 1], together, strict=True):
        [alone] = tiny.generate([prompt], seed=seed, **options)
        assert alone.token_ids == want.token_ids
        np.testing.assert_allclose(alone.logprobs, want.logprobs, atol=1e-4)


def test_meshes_agree(tiny):
    want = [g.token_ids for g in tiny.generate(PROMPTS, max_new_tokens=10)]
    for shape in ((4, 2), (2, 4)):
        got = make_tiny_model(*shape).generate(PROMPTS, max_new_tokens=10)
        assert [g.token_ids for g in got] == want


def test_greedy_tokens_are_the_best_of_the_logits(tiny):
    [answer] = tiny.generate([[1, 50, 60]], max_new_tokens=6)
    ids = [1, 50, 60]
    for token, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
        logits = np.asarray(tiny.logits(ids))[-1]
        assert int(logits.argmax()) == token
        want = logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert abs(want - logprob) < 1e-4
        ids.append(token)


def test_streaming_gives_the_same_text(embedded):
    context = embedded.kv_as_cartridge(
        embedded.template.render_context("", "Ada Brown lives in Oslo.")
    )
    for question in ("Where does Ada Brown live?", "Summarise what the text says about Ada Brown."):
        [whole] = embedded.generate([question], context, max_new_tokens=20)
        pieces = list(embedded.stream(question, context, max_new_tokens=20))
        assert "".join(pieces) == whole.text
        assert len(pieces) > 1 or len(whole.token_ids) <= 8


def test_length_and_stop_are_told_apart(embedded):
    context = embedded.kv_as_cartridge(
        embedded.template.render_context("", "Ada Brown lives in Oslo.")
    )
    [cut] = embedded.generate(["Where does Ada Brown live?"], context, max_new_tokens=2)
    [done] = embedded.generate(["Where does Ada Brown live?"], context, max_new_tokens=40)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 2)
    assert done.finish_reason == "stop" and done.token_ids[-1] in embedded.config.eos_token_ids


def test_sampling_follows_the_distribution(tiny):
    """First tokens of 2,000 samples against the softmax, for the ten likeliest ids."""
    logits = np.asarray(tiny.logits([1, 9, 17]))[-1] * 8.0
    p = np.exp(logits - logits.max())
    p /= p.sum()
    samples = tiny.generate(
        [[1, 9, 17]] * 2000, max_new_tokens=1, temperature=1 / 8, batch_size=500
    )
    counts = np.bincount([s.token_ids[0] for s in samples], minlength=len(p))
    for token in np.argsort(p)[-10:]:
        spread = np.sqrt(2000 * p[token] * (1 - p[token])) + 1
        assert abs(counts[token] - 2000 * p[token]) < 5 * spread


def test_empty_prompts_are_refused(tiny):
    with pytest.raises(InputError, match="empty"):
        tiny.generate([[]])
