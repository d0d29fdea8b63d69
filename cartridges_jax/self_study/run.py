"""Self-study: the model asks itself questions about chunks of the corpus and answers them.

Takes documents, hands on `conversations-*.array_record`, a shard for each unit (`unit.py`). Unit
`i` depends only on (settings, corpus, model, i), so a killed run goes on where it was, and runs of
any length begin alike.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cartridges_jax import distributed, files
from cartridges_jax.config import check_ranges, digest
from cartridges_jax.corpus import Document, corpus_identity
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress
from cartridges_jax.self_study import seeds
from cartridges_jax.self_study.clients.base import Client
from cartridges_jax.self_study.clients.local import LocalClient
from cartridges_jax.self_study.config import SynthesisConfig
from cartridges_jax.self_study.conversation import SHARDS, Conversation
from cartridges_jax.self_study.unit import ChunkDrawer, chunk_widths, study_unit
from cartridges_jax.shard_exchange import exchange
from cartridges_jax.shards import ShardSet

AHEAD = 2  # times as many requests as a client can answer at once are asked of it
HOPELESS_UNITS = 8  # without a single conversation: the settings cannot work


def synthesize(
    model: LanguageModel,
    documents: Sequence[Document],
    out: str | os.PathLike[str],
    config: SynthesisConfig | None = None,
    client: Client | None = None,
) -> ShardSet:
    """Writes conversations about the documents to `out`; goes on if begun before.

    Args:
      model: draws the chunks (its tokenizer counts tokens) and plays both bots.
      documents: the corpus.
      out: folder of the shards.
      config: settings.
      client: plays the bots instead of `model`.

    Returns:
      The finished shards.

    Raises:
      InputError: on settings or a corpus that cannot work, or a folder begun with others.
    """
    config = config or SynthesisConfig()
    check_ranges(config)
    if not documents:
        raise InputError("there is no document to study")
    widths = chunk_widths(model, documents, config)
    client = client or LocalClient(model)
    inputs = study_inputs(config, client, documents) | {
        "seeds": digest([seeds.SEEDS, seeds.EXAMPLE_PASSAGES, seeds.EXAMPLES])
    }
    distributed.check_alike("the study", digest(inputs))
    shards = ShardSet.open(files.output_folder(out), SHARDS, inputs)
    drawer = ChunkDrawer.of(documents, model, widths, shards.folder)
    study = functools.partial(study_unit, drawer=drawer, client=client, config=config)
    per_unit = config.conversations_per_chunk
    # While some units' requests are written, others' are answered.
    at_once = max(1, -(-AHEAD * client.requests_at_once // per_unit))
    with contextlib.closing(client):
        return write_units(shards, study, config.num_conversations, per_unit, at_once)


def study_inputs(config: Any, client: Client, documents: Sequence[Document]) -> dict[str, Any]:
    """What decides the conversations of a unit.

    How many are wanted is not among it: a larger run continues a smaller one.
    """
    inputs = dataclasses.asdict(config) | {
        "model": client.fingerprint,
        "corpus": corpus_identity(documents),
    }
    del inputs["num_conversations"]
    inputs.pop("preset", None)  # where its values came from changes nothing
    return inputs


def write_units(
    shards: ShardSet,
    study: Callable[[int], list[Conversation]],
    wanted: int,
    per_unit: int,
    at_once: int = 1,
) -> ShardSet:
    """Writes units until there are `wanted` conversations; runs end on whole units.

    Several processes divide the units by index, and together write those that one alone would: the
    first ones that hold as many. A process begins a unit only if all before it cannot be enough.
    Where each has a disk of its own, units are exchanged after each, and all end with all of them.

    Args:
      shards: of the folder, as far as they are.
      study: writes the conversations of a unit.
      wanted: conversations in all.
      per_unit: the most that a unit tries.
      at_once: units that are written at a time, each by a thread.

    Raises:
      InputError: if so little is kept that no end is in sight.
    """
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(at_once)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        return _write_units(shards, pool, study, wanted, per_unit, at_once)


def _write_units(
    shards: ShardSet,
    pool: concurrent.futures.Executor,
    study: Callable[[int], list[Conversation]],
    wanted: int,
    per_unit: int,
    at_once: int,
) -> ShardSet:
    running: dict[int, concurrent.futures.Future[list[Conversation]]] = {}
    shared = distributed.disk_is_shared(shards.folder)
    first, total = 0, 0  # all units before `first` are there, and hold so many conversations
    with progress(wanted, "self-study", "conv", shards.num_records) as bar:
        while True:
            if shared:
                shards.refresh()
            else:
                exchange(shards)
            while first in shards.units and total < wanted:
                total += shards.units[first]["records"]
                first += 1
            if total >= wanted:
                return shards
            most = HOPELESS_UNITS if not total else 50 + 20 * wanted / per_unit
            if first >= most:
                raise InputError(
                    f"after {first} chunks only {total} of {wanted} conversations "
                    "were kept: what bot A wrote was no request, or an answer did not end within "
                    "its tokens; raise num_examples, question_max_tokens or answer_max_tokens, or "
                    "lower min_answer_confidence"
                )
            for index in _next_units(shards, first, wanted - total, per_unit):
                if len(running) == at_once:
                    break
                if index not in running:
                    running[index] = pool.submit(study, index)
            if not running:  # others' units decide how many there will be
                if shared:
                    distributed.wait_for_others()
                continue
            concurrent.futures.wait(running.values(), return_when="FIRST_COMPLETED")
            for index in [i for i, unit in running.items() if unit.done()]:
                records = [c.to_bytes() for c in running.pop(index).result()]
                shards.write(index, records, dropped=per_unit - len(records))
                bar.update(len(records))


def _next_units(shards: ShardSet, first: int, missing: int, per_unit: int) -> Iterator[int]:
    """This process's units from `first` on that `missing` conversations surely need."""
    most = 0  # conversations of the units from `first` on
    for index in itertools.count(first):
        if most >= missing:
            return
        known = shards.units.get(index)
        if known is None and distributed.is_mine(index):
            yield index
        most += per_unit if known is None else known["records"]
