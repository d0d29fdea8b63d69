"""The Grain pipeline: targets are shuffled anew each epoch, packed into rows and batched.

A packed row holds several conversations; each is a segment with positions of its own, and sees
only itself (and the prefix). A row has a fixed number of places for targets: what overflows opens
a new row. A conversation that fits no row is left out and counted, never cut. The iterator's state
resumes exactly.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import grain
import numpy as np

from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.distillation.targets import LossOn
from cartridges_jax.errors import InputError
from cartridges_jax.shapes import round_up
from cartridges_jax.shards import Records, ShardSet

PACKING_BINS = 8  # rows that are open at a time
LENGTH_STEP = 64  # rows that are not packed are padded up to a multiple of this many tokens


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Sizes of a packed row: tokens T and target places M."""

    num_tokens: int
    num_targets: int

    def takes(self, num_tokens: int, num_targets: int) -> bool:
        """Whether a conversation fits such a row."""
        return num_tokens <= self.num_tokens and 0 < num_targets <= self.num_targets


@dataclasses.dataclass(frozen=True)
class PackedData:
    """An endless data set of batches and what went into it."""

    batches: Any  # grain.IterDataset of dicts, see `packed_rows`
    num_conversations: int
    num_dropped: int  # fit no row
    target_positions: int  # per epoch, dropped ones left out
    longest: int  # tokens of the longest conversation that fits


def packed_data(
    shards: ShardSet,
    shape: RowShape,
    rows: int,
    seed: int,
    labels: Literal["teacher", "tokens"] = "teacher",
    loss_on: LossOn = "all",
) -> PackedData:
    """Opens the targets of one corpus as batches of packed rows, without end.

    Args:
      shards: targets.
      shape: of a row.
      rows: in a batch.
      seed: of the order.
      labels: what the teacher said, or the conversations' own next tokens.
      loss_on: which tokens are targets.

    Raises:
      InputError: if no conversation fits a row, or a unit is missing or damaged.
    """
    counts = targets_file.ROW_TARGETS[loss_on]
    kept = dropped = positions = longest = 0
    for index, unit in shards.units.items():
        shards.records(index)  # checks that they are whole
        if not {"row_tokens", counts} <= unit.keys():
            raise InputError(
                f"{shards.folder}: {shards.name}.manifest.jsonl does not say how long the rows of "
                f"unit {index} are; remove it to score them again"
            )
        for tokens, num_targets in zip(unit["row_tokens"], unit[counts], strict=True):
            if shape.takes(tokens, num_targets):
                kept, positions = kept + 1, positions + num_targets
                longest = max(longest, tokens)
            else:
                dropped += 1
    if not kept + dropped:
        raise InputError(f"{shards.folder} holds no {shards.name}")
    if not kept:
        raise InputError(
            f"none of the {dropped} conversations in {shards.folder} fits a row of "
            f"{shape.num_tokens} tokens with {shape.num_targets} targets; raise row_length"
        )

    def decode(record: bytes) -> dict[str, np.ndarray]:
        row = targets_file.decode_record(record, loss_on)
        return row if labels == "teacher" else targets_file.as_hard_labels(row)

    dataset = (
        grain.MapDataset.source(Records(shards))
        .shuffle(seed=seed)
        .repeat()
        .map(decode)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64))
        .filter(lambda row: shape.takes(len(row["token_ids"]), len(row["target_index"])))
    )
    lengths = {
        "token_ids": shape.num_tokens,
        "target_index": shape.num_targets,
        "top_ids": shape.num_targets,
        "top_logprobs": shape.num_targets,
    }
    dataset = grain.experimental.FirstFitPackIterDataset(
        dataset, length_struct=lengths, num_packing_bins=PACKING_BINS, seed=seed, shuffle_bins=True
    )
    dataset = dataset.map(packed_row).batch(rows, drop_remainder=True)
    return PackedData(dataset, kept, dropped, positions, longest)


def packed_row(element: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turns Grain's packed element into the arrays of one row.

    Returns:
      token_ids, positions (from 0 in each segment), segment_start [T]; target_index, weight [M]
      and top_ids, top_logprobs [M, J]. Padding is a segment of its own without targets.
    """
    segment = element["token_ids_segment_ids"]
    T = len(segment)
    is_start = np.concatenate([[True], segment[1:] != segment[:-1]])
    start = np.maximum.accumulate(np.where(is_start, np.arange(T), 0)).astype(np.int32)
    start_of = np.zeros(segment.max() + 1, np.int32)
    start_of[segment[is_start]] = np.flatnonzero(is_start)
    owner = element["target_index_segment_ids"]
    real = owner > 0
    index = np.where(real, element["target_index"] + start_of[owner], 0)
    return {
        "token_ids": element["token_ids"],
        "positions": (np.arange(T) - start).astype(np.int32),
        "segment_start": start,
        "target_index": index.astype(np.int32),
        "top_ids": element["top_ids"],
        "top_logprobs": element["top_logprobs"],
        "target_weight": real.astype(np.float32),
    }


def unpacked_rows(rows: Sequence[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """The arrays of `packed_row` for `count` rows of one conversation each, padded alike.

    Rows are padded up to a multiple of LENGTH_STEP tokens; places beyond `rows` have no targets.
    """
    T = round_up(max(len(r["token_ids"]) for r in rows), LENGTH_STEP)
    J = rows[0]["top_ids"].shape[1]
    batch = {
        "token_ids": np.zeros((count, T), np.int32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (count, T)).copy(),
        "segment_start": np.zeros((count, T), np.int32),
        "target_index": np.zeros((count, T), np.int32),
        "top_ids": np.zeros((count, T, J), np.int32),
        "top_logprobs": np.zeros((count, T, J), np.float32),
        "target_weight": np.zeros((count, T), np.float32),
    }
    for i, row in enumerate(rows):
        n, m = len(row["token_ids"]), len(row["target_index"])
        batch["token_ids"][i, :n] = row["token_ids"]
        batch["target_weight"][i, :m] = 1.0
        for name in ("target_index", "top_ids", "top_logprobs"):
            batch[name][i, :m] = row[name]
    return batch
