"""How fast an arm decodes: measured only where it is asked for, as a program is compiled for it."""

import logging
import statistics
import time
from typing import Any

import jax

from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.decoding import Decoding
from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress

_log = logging.getLogger(__name__)

RUNS = 3  # timed, after one that compiles
RUN_TOKENS = 32
TIMED_TOKENS = (1 + RUNS) * RUN_TOKENS  # of an answer


def decode_rate(model: LanguageModel, arm: Arm, batch: int) -> dict[str, Any] | None:
    """Decode tokens a second of `batch` requests at once, reading of the context excluded.

    With "full context" each request carries the document in its own cache; with a cartridge all
    share it. None where so many requests do not fit the memory.
    """
    prompt = [*arm.prompt_head, *model.render_prompt("?", has_context=True)]
    rates = []
    with progress(1 + RUNS, f"time {arm.name}"[:11], "run") as bar:
        try:
            run = Decoding(
                model.transformer,
                [prompt] * batch,
                GenerationConfig(TIMED_TOKENS),
                seeds=[0] * batch,
                prefix=model.as_prefix(arm.prefix),
                mesh=model.mesh,
            )
            for _ in range(1 + RUNS):
                started = time.perf_counter()
                run.advance(RUN_TOKENS)
                rates.append(batch * RUN_TOKENS / (time.perf_counter() - started))
                bar.update()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
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
