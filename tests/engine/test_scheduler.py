"""Rows, spans and pages under any order of events, on a device that checks what each token sees."""

import gc
import os
import random

import pytest

from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.memory import EngineConfig
from cartridges_jax.engine.pages import Pages, Span
from cartridges_jax.engine.requests import Request
from cartridges_jax.engine.scheduler import Row, Scheduler
from cartridges_jax.errors import InputError
from tests.engine.fake_device import VOCABULARY, loaded, make_engine, plain_answer

CONFIG = EngineConfig(max_rows=5, page_size=4, long_piece=16, short_piece=8)
COUNT = int(os.environ.get("CARTRIDGES_MIXES", "15"))


def check_pages(engine, in_use=True):
    """No page is lost, and none is in two places."""
    for scheduler in engine._schedulers:
        held = [page for owner in (*scheduler.rows, *scheduler.resident) for page in owner.pages]
        free = scheduler.pages._free
        assert sorted([*held, *free]) == list(range(1, scheduler.pages.count))
        followed = [span for row in scheduler.rows for span in row.path]
        assert all(span.followers == followed.count(span) for span in scheduler.resident)
        if not in_use:
            assert not scheduler.rows and not scheduler.num_waiting and not held


def make_contexts(rng, engine):
    """Contexts with what they hold: text, text behind text, slots, text behind slots."""

    def tokens():
        return [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 20))]

    made = []
    for i in range(rng.randrange(5)):
        text, is_loaded = tokens(), rng.random() < 0.4
        behind = rng.choice([None, *made])
        if is_loaded:
            parts = [(f"s{i}", text), (f"t{i}", tokens())][: rng.randrange(1, 3)]
            made.append((engine.context_of([loaded(*part) for part in parts]), parts))
        elif behind is None:
            made.append((engine.context(text), [text]))
        else:
            made.append((engine.context(text, behind=behind[0]), [*behind[1], text]))
    return [(None, []), *made]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("num_pages", [26, 60])
def test_every_answer_is_the_plain_one(monkeypatch, groups, num_pages):
    """Rows come, go and are cancelled, pages run out, contexts are dropped, in any order."""
    dropped = cancelled = 0
    for seed in range(COUNT):
        rng = random.Random(seed)
        engine = make_engine(monkeypatch, groups, CONFIG, num_pages)
        contexts = make_contexts(rng, engine)
        asked = []
        for _ in range(rng.randrange(1, 40)):
            if rng.random() < 0.6:
                context, holds = rng.choice(contexts)
                prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 30))]
                stop = tuple(rng.sample(range(VOCABULARY), rng.randrange(4)))
                config = GenerationConfig(rng.randrange(1, 25), stop_ids=stop)
                request = Request(prompt, config, rng.randrange(9), context)
                asked.append((engine.submit(request), holds))
            if asked and rng.random() < 0.1:
                engine.cancel(rng.choice(asked)[0])
            if len(contexts) > 1 and rng.random() < 0.1:
                del contexts[rng.randrange(1, len(contexts))]
            if engine._inbox or engine._answers:
                engine._step()
            check_pages(engine)
        engine.advance(lambda asked=asked: all(answer.generation for answer, _ in asked))
        for answer, holds in asked:
            request = answer.request
            want = plain_answer(holds, request.token_ids, request.config, request.seed)
            got = answer.generation
            if got.finish_reason == "cancelled":
                cancelled += 1
                assert got.token_ids == want[: len(got.token_ids)]
            else:
                assert got.token_ids == want
        dropped += engine.counts.dropped_rows
        contexts.clear()
        asked.clear()
        del request, answer, context
        gc.collect()
        while engine._inbox:
            engine._inbox.popleft()()
        check_pages(engine, in_use=False)
    assert cancelled > COUNT / 4 and (dropped > COUNT / 10 or num_pages > 30)


def test_what_can_never_fit_is_refused(monkeypatch):
    engine = make_engine(monkeypatch, 1, CONFIG, num_pages=5, window=50)
    with pytest.raises(InputError, match="take 6 pages of 4 slots; the pool has 4"):
        engine.submit(Request(list(range(9)), GenerationConfig(12)))
    with pytest.raises(InputError, match="need 51 positions, the model's window is 50"):
        engine.submit(Request([1], GenerationConfig(50)))
    with pytest.raises(InputError, match="empty"):
        engine.submit(Request([], GenerationConfig(1)))


def test_rows_are_admitted_by_arrival_and_the_last_is_dropped():
    scheduler = Scheduler(Pages(7, 4), max_rows=3, piece_tokens=16, piece_rows=4)
    rows = [Row((), [1, 2, 3], 12) for _ in range(4)]
    for row in rows:
        scheduler.add(row)
    assert [s.owner for s in scheduler.plan_piece().segments] == rows[:3]
    for _ in range(12):
        scheduler.plan_decode()
    assert scheduler.num_dropped and rows[0].slot >= 0 and rows[0].drawn == 12


def test_a_prompt_is_read_in_pieces_behind_spans_that_are_read_once():
    scheduler = Scheduler(Pages(20, 4), max_rows=3, piece_tokens=8, piece_rows=4)
    span = Span.of_tokens(list(range(10)))
    rows = [Row((span,), [7] * 5, 2) for _ in range(2)]
    for row in rows:
        scheduler.add(row)
    read = []
    while piece := scheduler.plan_piece():
        assert piece.num_tokens <= 8
        read += [(s.owner, s.start, s.count, s.draws) for s in piece.segments]
    assert read == [
        (span, 0, 8, False), (span, 8, 2, False), (rows[0], 0, 5, True), (rows[1], 0, 1, False),
        (rows[1], 1, 4, True),
    ]  # fmt: skip
