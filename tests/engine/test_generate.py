"""Generation does not depend on batches, padding or meshes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridges_jax.engine.answers import GenerationConfig, read_answer, settled
from cartridges_jax.engine.sampling import _keep_likely, _sample
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
    for shape in ((4, 2), (2, 4), (1, 8)):  # the last has more devices than kv heads
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


def test_streaming_gives_the_same_text(trained):
    context = trained.kv_as_cartridge(
        trained.template.render_context("", "Ada Brown lives in Oslo.")
    )
    for question in ("Where does Ada Brown live?", "Summarise what the text says about Ada Brown."):
        [whole] = trained.generate([question], context, max_new_tokens=20)
        pieces = list(trained.stream(question, context, max_new_tokens=20))
        assert "".join(pieces) == whole.text
        assert len(pieces) > 1 or len(whole.token_ids) <= 8


def test_stop_texts_end_an_answer(trained):
    context = trained.kv_as_cartridge(
        trained.template.render_context("", "Ada Brown's city is Oslo. Bo Falk's city is Rome.")
    )
    questions = ["What is Ada Brown's city?", "What is Bo Falk's city?"]
    whole = trained.generate(questions, context, max_new_tokens=30)
    assert "Brown" in whole[0].text and "Brown" not in whole[1].text
    cut = trained.generate(questions, context, max_new_tokens=30, stop=["Brown", "never"])
    assert cut[0].text == whole[0].text[: whole[0].text.index("Brown")]
    assert cut[0].finish_reason == "stop"
    assert len(cut[0].token_ids) < len(whole[0].token_ids)
    assert cut[0].token_ids == whole[0].token_ids[: len(cut[0].token_ids)]
    assert len(cut[0].logprobs) == len(cut[0].token_ids)
    assert cut[1] == whole[1]
    for stop in ("Brown", whole[0].text[2:]):  # also one that is longer than the first pieces
        options = {"max_new_tokens": 30, "stop": [stop]}
        streamed = "".join(trained.stream(questions[0], context, **options))
        assert streamed == trained.generate(questions[:1], context, **options)[0].text
        assert stop[:3] not in streamed


def test_a_row_ends_once_its_text_is_enough(trained):
    questions = [f"Write about {name}." for name in ("Oslo", "Rome", "Ada", "Bo")]
    options = {"max_new_tokens": 60, "stop_token_ids": (), "temperature": 1.0}
    whole = trained.generate(questions, **options)
    asked = []

    def enough(text):
        asked.append(text)
        return " " in text.strip()

    cut = trained.generate(questions, enough=enough, **options)
    for short, long in zip(cut, whole, strict=True):
        assert long.text.startswith(short.text) and " " in short.text.strip()
        assert short.finish_reason == "stop"
        assert len(short.token_ids) < len(long.token_ids) == 60
        assert len(short.logprobs) == len(short.token_ids)


@pytest.mark.parametrize("stop", [" € ", "テキス", "😀"])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_nothing_of_a_stop_text_is_shown(trained, stop, step):
    """Also of characters that the tokenizer spells in bytes, a token each."""
    tokenizer = trained.tokenizer
    for text in ("Preis: 5 € und mehr", "日本語テキスト", "Well 😀 done", "日本語 without it"):
        ids, shown = tokenizer.encode(text), ""
        for n in range(step, len(ids) + step, step):
            config = GenerationConfig(len(ids), stop=(stop,))
            answer = read_answer(tokenizer, ids[:n], [0.0] * n, config)
            shown += settled(answer, [stop])[len(shown) :]
        assert shown == text.partition(stop)[0]


def test_any_whole_number_is_a_seed(tiny):
    options = {"max_new_tokens": 4, "temperature": 1.0}
    large = tiny.generate(["x", "y"], seed=2**31 - 1, **options)
    assert large[1].token_ids == tiny.generate(["y"], seed=0, **options)[0].token_ids  # they wrap


def test_stop_tokens_of_the_caller(tiny):
    [free] = tiny.generate([[1, 50, 60]], max_new_tokens=12, stop_token_ids=())
    assert len(free.token_ids) == 12 and free.finish_reason == "length"
    wanted = free.token_ids[4]
    [cut] = tiny.generate([[1, 50, 60]], max_new_tokens=12, stop_token_ids=[wanted])
    end = free.token_ids.index(wanted) + 1
    assert cut.token_ids == free.token_ids[:end] and cut.finish_reason == "stop"


@given(
    st.lists(st.integers(-500, 500), min_size=2, max_size=20, unique=True),
    st.integers(0, 25),
    st.integers(1, 100),
)
@settings(max_examples=100, deadline=None)
def test_top_k_and_top_p_keep_what_their_definitions_keep(hundredths, top_k, percent):
    """Sorted by probability: the first k, and of these the fewest that hold top_p."""
    scores, top_p = np.float32(hundredths) / 100, percent / 100
    options = (jnp.asarray([x], dtype) for x, dtype in ((top_k, int), (top_p, float), (0, float)))
    cut = _keep_likely(jnp.asarray(scores[None]), *options)
    got = np.isfinite(np.asarray(cut))[0]
    order = np.argsort(scores)[::-1][: top_k or None]
    shares = np.exp(np.asarray(scores, np.float64)[order])
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    # Within rounding of the border either answer is right.
    sure = {int(i) for i, b in zip(order, before, strict=True) if b < top_p - 1e-5}
    may = {int(i) for i, b in zip(order, before, strict=True) if b < top_p + 1e-5}
    kept = set(np.flatnonzero(got).tolist())
    assert sure | {int(order[0])} <= kept <= may | {int(order[0])}


def test_a_sample_is_the_inverse_of_the_distribution_function():
    """Also at the ends, over more ids than a block has, and never an id of no probability."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 1000)).astype(np.float32) * 3
    scores[:, ::7] = -np.inf
    uniform = rng.random(400).astype(np.float32)
    uniform[:2], scores[2:4, :900] = (0.0, np.nextafter(np.float32(1), np.float32(0))), -np.inf
    got = np.asarray(_sample(jnp.asarray(scores), jnp.asarray(uniform)))
    p = np.exp(np.asarray(scores, np.float64) - scores.max(1, keepdims=True))
    up_to = np.cumsum(p / p.sum(1, keepdims=True), axis=1)
    assert np.isfinite(scores[np.arange(400), got]).all()
    before = np.where(got > 0, up_to[np.arange(400), got - 1], 0)
    assert (before <= uniform + 1e-5).all() and (uniform <= up_to[np.arange(400), got] + 1e-5).all()


def test_samples_come_from_the_kept_tokens(tiny):
    logits = np.asarray(tiny.logits([1, 9, 17]))[-1]
    options = {"max_new_tokens": 1, "temperature": 3.0}
    samples = tiny.generate([[1, 9, 17]] * 64, top_k=3, **options)
    best = set(np.argsort(logits)[-3:].tolist())
    assert {s.token_ids[0] for s in samples} == best
    samples = tiny.generate([[1, 9, 17]] * 64, top_p=1e-6, **options)
    assert {s.token_ids[0] for s in samples} == {int(logits.argmax())}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_p": 0.0}, "top_p=0.0 above 0"),
        ({"top_k": -1}, "top_k=-1 must be numbers of at least 0"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"stop": ["", "x"]}, "none empty"),
        ({"stop": "x"}, "list of texts"),
        ({"seeds": [1, 2]}, "2 seeds were given for 1 prompts"),
        ({"max_new_tokens": 0}, "max_new_tokens must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny, options, words):
    with pytest.raises(InputError, match=words):
        tiny.generate(["x"], **options)


def test_length_and_stop_are_told_apart(trained):
    context = trained.kv_as_cartridge(
        trained.template.render_context("", "Ada Brown lives in Oslo.")
    )
    [cut] = trained.generate(["Where does Ada Brown live?"], context, max_new_tokens=2)
    [done] = trained.generate(["Where does Ada Brown live?"], context, max_new_tokens=40)
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 2)
    assert done.finish_reason == "stop" and done.token_ids[-1] in trained.config.eos_token_ids


def test_sampling_follows_the_distribution(tiny):
    """First tokens of 2,000 samples against the softmax, for the ten likeliest ids."""
    logits = np.asarray(tiny.logits([1, 9, 17]))[-1] * 8.0
    p = np.exp(logits - logits.max())
    p /= p.sum()
    samples = tiny.generate([[1, 9, 17]] * 2000, max_new_tokens=1, temperature=1 / 8)
    counts = np.bincount([s.token_ids[0] for s in samples], minlength=len(p))
    for token in np.argsort(p)[-10:]:
        spread = np.sqrt(2000 * p[token] * (1 - p[token])) + 1
        assert abs(counts[token] - 2000 * p[token]) < 5 * spread


def test_empty_prompts_are_refused(tiny):
    with pytest.raises(InputError, match="empty"):
        tiny.generate([[]])
