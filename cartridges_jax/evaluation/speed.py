"""How fast an arm decodes: measured only where it is asked for, as a program is compiled for it."""

import dataclasses
import logging
import statistics
import time
from typing import Any

from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.engine import Engine
from cartridges_jax.engine.requests import Answer, Request
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress
from cartridges_jax.sharding import DATA

_log = logging.getLogger(__name__)

RUNS = 3  # timed, after one that compiles
RUN_TOKENS = 32
TIMED_TOKENS = (1 + RUNS) * RUN_TOKENS + 1  # of an answer; the first is there before a run begins


def decode_rate(model: LanguageModel, arm: Arm, batch: int) -> dict[str, Any] | None:
    """Decode tokens a second of `batch` requests at once, reading of the context excluded.

    With "full context" each request carries the document in its own pages; with a cartridge all
    share it. None where so many requests do not fit the memory.
    """
    rates = []
    with progress(1 + RUNS, f"time {arm.name}"[:11], "run") as bar:
        engine, answers = _begun(model, arm, batch)
        for run in range(1 + RUNS):
            _advance(engine, answers, 1 + run * RUN_TOKENS)
            started = time.perf_counter()
            _advance(engine, answers, 1 + (run + 1) * RUN_TOKENS)
            rates.append(batch * RUN_TOKENS / (time.perf_counter() - started))
            bar.update()
    if engine.counts.dropped_rows or engine.counts.most_rows < batch:
        _log.warning("%s: %d requests do not fit the memory; no speed", arm.name, batch)
        return None
    timed = rates[1:]
    return {
        "median": statistics.median(timed),
        "min": min(timed),
        "max": max(timed),
        "batch": batch,
        "runs": RUNS,
    }


def _begun(model: LanguageModel, arm: Arm, batch: int) -> tuple[Engine, list[Answer]]:
    """An engine of its own that answers `batch` requests, all at a time."""
    sizes = dataclasses.replace(model.engine_config, max_rows=-(-batch // model.mesh.shape[DATA]))
    model.release_engine()  # two pools may not fit
    engine = Engine(model.transformer, model.tokenizer, model.mesh, sizes)
    prefix = model.as_prefix(arm.prefix)
    context = None
    if prefix is not None:
        size = int(prefix.length), int(prefix.next_position)
        context = engine.context_of([(*size, lambda: prefix.kv)])
    prompt = [*arm.prompt_head, *model.render_prompt("?", has_context=True)]
    request = Request(prompt, GenerationConfig(TIMED_TOKENS), context=context)
    return engine, [engine.submit(request) for _ in range(batch)]


def _advance(engine: Engine, answers: list[Answer], tokens: int) -> None:
    engine.advance(lambda: all(len(answer.token_ids) >= tokens for answer in answers))
