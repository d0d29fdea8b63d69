"""Requests beside each other are answered as by the plain forward, whatever runs beside them."""

import dataclasses
import os
import random

import jax
import numpy as np
import pytest

from cartridges_jax.composition import Composition
from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.engine import Engine
from cartridges_jax.engine.memory import EngineConfig
from cartridges_jax.engine.requests import Request
from cartridges_jax.engine.sampling import Sampling
from cartridges_jax.errors import InputError
from cartridges_jax.models.transformer import KV, Prefix
from tests.conftest import make_tiny_model
from tests.test_composition import composed

SIZES = EngineConfig(max_rows=8, page_size=8, long_piece=32, short_piece=8, kv_gib=0.0)
MIXES = int(os.environ.get("CARTRIDGES_MIXES", "6"))


def small_engine(model, pages, monkeypatch):
    """An engine with so many pages that rows are dropped."""
    monkeypatch.setattr("cartridges_jax.engine.engine.num_pages", lambda *_: pages)
    return Engine(model.transformer, model.tokenizer, model.mesh, SIZES)


@pytest.fixture(scope="module")
def plain(tiny):
    """The next token's log-probabilities behind prefixes and own tokens, by the plain forward."""

    @jax.jit
    def forward(prefix, ids, positions, last):
        hidden, _ = tiny.transformer(ids, positions, None, prefix=prefix)
        return jax.nn.log_softmax(tiny.transformer.logits(hidden)[0, last])

    def run(prefixes, ids, last=None):
        room, own = 96, 64
        L, K, H = 3, 4, 10
        k, v = (np.zeros((L, room, K, H), np.float32) for _ in range(2))
        at = 0
        for p in prefixes:
            n = int(p.length)
            k[:, at : at + n], v[:, at : at + n] = p.kv.k[:, :n], p.kv.v[:, :n]
            at += n
        start = sum(int(p.next_position) for p in prefixes)
        padded = np.zeros((1, own), np.int32)
        padded[0, : len(ids)] = ids
        with jax.set_mesh(tiny.mesh):
            spec = jax.sharding.PartitionSpec(None, None, "model", None)
            kv = KV(*(jax.device_put(x, jax.NamedSharding(tiny.mesh, spec)) for x in (k, v)))
            prefix = Prefix(kv, np.int32(at), np.int32(start))
            rows = jax.NamedSharding(tiny.mesh, jax.sharding.PartitionSpec("data", None))
            ids, positions = (
                jax.device_put(x, rows)
                for x in (padded, np.arange(own, dtype=np.int32)[None] + start)
            )
            last = np.int32(len(padded[0]) if last is None else last)
            return np.asarray(forward(prefix, ids, positions, last))

    return run


def plain_answer(plain, prefixes, prompt, config):
    """Greedy; also how near the second best token was."""
    ids, nearest = list(prompt), 9.0
    while len(ids) - len(prompt) < config.max_new_tokens:
        logprobs = plain(prefixes, ids, len(ids) - 1)
        best, second = np.sort(logprobs)[::-1][:2]
        nearest = min(nearest, best - second)
        ids.append(int(logprobs.argmax()))
        if ids[-1] in config.stop_ids:
            break
    return ids[len(prompt) :], nearest


def slots_of(prefixes):
    """As the engine takes them."""
    return [(int(p.length), int(p.next_position), lambda p=p: p.kv) for p in prefixes]


def some(rng, count):
    return [rng.randrange(3, 500) for _ in range(count)]


def test_greedy_answers_are_the_plain_ones(tiny, plain, monkeypatch):
    """Mixes of contexts, compositions, lengths, arrivals and cancellations, with few pages."""
    dropped = checked = 0
    for seed in range(MIXES):
        rng = random.Random(seed)
        engine = small_engine(tiny, 18, monkeypatch)
        texts = [some(rng, rng.randrange(5, 30)) for _ in range(3)]
        prefixes = [tiny.as_prefix(tiny.kv_as_cartridge(text)) for text in texts]
        how = Composition(rng.random() < 0.5, rng.random() < 0.5)
        joined = composed(tiny, prefixes[:2], how)
        text = engine.context(texts[0])
        contexts = [
            (None, []),
            (text, [prefixes[0]]),
            (engine.context_of(slots_of(prefixes[1:2])), prefixes[1:2]),
            (engine.context_of(slots_of(joined)), joined),
        ]
        asked = []
        for _ in range(20):
            context, before = rng.choice(contexts)
            config = GenerationConfig(
                rng.randrange(1, 20), stop_ids=tuple(rng.sample(range(500), 20))
            )
            request = Request(some(rng, rng.randrange(1, 30)), config, 0, context)
            asked.append((engine.submit(request), before))
            for _ in range(rng.randrange(3)):
                engine._step()
            if rng.random() < 0.1:
                engine.cancel(rng.choice(asked)[0])
        engine.advance(lambda asked=asked: all(a.generation for a, _ in asked))
        for answer, before in asked:
            got, request = answer.generation, answer.request
            want, nearest = plain_answer(plain, before, request.token_ids, request.config)
            if nearest > 1e-4:  # else rounding decides
                assert got.token_ids == want[: len(got.token_ids)]
                assert got.finish_reason == "cancelled" or len(got.token_ids) == len(want)
                checked += 1
        dropped += engine.counts.dropped_rows
    assert dropped > 0 and checked > 17 * MIXES


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_samples_do_not_depend_on_what_runs_beside(tiny, mesh):
    """The same request and seed give the same tokens: alone, and in a crowd of another mesh."""
    sampling = Sampling(0.8, 50, 0.95, 0.01)
    config = GenerationConfig(12, sampling)
    alone = Engine(tiny.transformer, tiny.tokenizer, tiny.mesh, SIZES)
    other = make_tiny_model(*mesh)
    crowd = Engine(other.transformer, other.tokenizer, other.mesh, SIZES)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 500) for _ in range(rng.randrange(1, 40))] for _ in range(6)]
    requests = [Request(prompt, config, seed) for seed, prompt in enumerate(prompts)]
    together = dict(crowd.answers(requests))
    for i, request in enumerate(requests):
        [(_, one)] = alone.answers([request])
        assert one.token_ids == together[i].token_ids
        np.testing.assert_allclose(one.logprobs, together[i].logprobs, atol=1e-4)


def test_log_probabilities_of_answers_and_prompts(tiny, plain):
    rng = random.Random(1)
    prompt = [rng.randrange(3, 500) for _ in range(45)]  # two pieces
    engine = Engine(tiny.transformer, tiny.tokenizer, tiny.mesh, SIZES)
    context = tiny.kv_as_cartridge([5, 6, 7, 8])
    before = [tiny.as_prefix(context)]
    config = GenerationConfig(4, top_logprobs=3, prompt_logprobs=True)
    crowd = [
        Request(prompt[:i], config, 0, engine.context_of(slots_of(before))) for i in (45, 1, 2, 31)
    ]
    answers = dict(engine.answers(crowd))
    for request, answer in ((crowd[i], answers[i]) for i in range(4)):
        ids = [*request.token_ids, *answer.token_ids]
        told = [*answer.prompt_logprobs, *answer.logprobs]
        tops = [*answer.prompt_top_logprobs, *answer.top_logprobs]
        assert len(told) == len(tops) == len(ids) - 1
        for i, (logprob, top) in enumerate(zip(told, tops, strict=True)):
            want = plain(before, ids[: i + 1], i)
            assert abs(logprob - want[ids[i + 1]]) < 1e-4
            best = np.argsort(-want)[:3]
            np.testing.assert_allclose(list(top.values()), want[best], atol=1e-4)
            assert len(top) == 3 and list(top) == sorted(top, key=top.get, reverse=True)
    [plainly] = tiny.generate([prompt], context, max_new_tokens=4)
    assert plainly.top_logprobs == [] == plainly.prompt_logprobs


def test_a_stopped_reader_of_an_answer_ends_it(tiny):
    engine = Engine(tiny.transformer, tiny.tokenizer, tiny.mesh, SIZES)
    growing = engine.watch(engine.submit(Request([1, 2, 3], GenerationConfig(200))))
    assert len(next(growing).token_ids) >= 1
    growing.close()
    other = engine.submit(Request([4], GenerationConfig(2)))
    engine.advance(lambda: other.generation)
    assert not engine._answers and engine.counts.steps < 50


def test_a_closed_engine_tells_who_waits(tiny):
    engine = Engine(tiny.transformer, tiny.tokenizer, tiny.mesh, SIZES)
    answer = engine.submit(Request([1, 2, 3], GenerationConfig(200)))
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.advance(lambda: answer.generation)


def test_a_pool_without_room_is_refused(tiny):
    little = dataclasses.replace(SIZES, kv_gib=1e-9)
    with pytest.raises(InputError, match="raise kv_gib or lower page_size"):
        Engine(tiny.transformer, tiny.tokenizer, tiny.mesh, little)
