"""How fast an arm decodes: measured only where it is asked for, as it takes a minute or more."""

import logging
import statistics
import time
from typing import Any

import jax

from cartridges_jax.evaluation.arms import Arm
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress

_log = logging.getLogger(__name__)

TIMING_RUNS = 2
TIMING_TOKENS = 32


def decode_rate(model: LanguageModel, arm: Arm, batch: int) -> dict[str, Any] | None:
    """Decode tokens a second of `batch` requests at once, reading of the context excluded.

    With "full context" each request carries the document in its own cache; with a cartridge all
    share it. The difference of a long and a short generation leaves the prefill out.
    """
    suffix = model.render_prompt("?", has_context=True)
    bar = progress(2 + 2 * TIMING_RUNS, f"time {arm.name}"[:11], "run")
    prompts = [[*arm.prompt_head, *suffix]] * batch

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        model.generate(
            prompts, arm.prefix, max_new_tokens=tokens, batch_size=batch, stop_token_ids=()
        )
        bar.update()
        return time.perf_counter() - started

    try:
        for tokens in (TIMING_TOKENS, 2 * TIMING_TOKENS):
            seconds(tokens)  # compiles
        differences = [
            seconds(2 * TIMING_TOKENS) - seconds(TIMING_TOKENS) for _ in range(TIMING_RUNS)
        ]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _log.warning("%s: %d requests do not fit the memory; no speed", arm.name, batch)
        return None
    finally:
        bar.close()
    runs = [batch * TIMING_TOKENS / d for d in differences if d > 0]
    if not runs:
        return None  # a busy machine: the longer generations took no longer than the short ones
    return {
        "median": statistics.median(runs),
        "min": min(runs),
        "max": max(runs),
        "batch": batch,
        "runs": len(runs),
    }
