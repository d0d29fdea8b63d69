"""The Grain pipeline: targets are shuffled anew each epoch, packed into rows and batched.

A packed row holds several conversations; each is a segment with positions of its own, and sees
only itself (and the prefix). A row has a fixed number of places for targets: what overflows opens
a new row. A conversation that fits no row is left out and counted, never cut.

Rows are packed by what the manifest tells of lengths, and only then read: each process packs all
rows alike and reads its own. So the order of the data depends neither on processes nor on meshes,
and the iterator's state, a few numbers, resumes exactly on any of them. Opening takes milliseconds
for a hundred thousand conversations; a batch of 64 rows is packed in some 50 ms, in a thread.
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
AHEAD = 2  # batches that are ready before they are asked for
LENGTH_STEP = 64  # rows that are not packed are padded up to a multiple of this many tokens


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Sizes of a packed row: tokens T and target places M."""

    num_tokens: int
    num_targets: int


class _Lengths:
    """The lengths of all conversations, as Grain's source: what packing needs to know."""

    def __init__(self, tokens: np.ndarray, targets: np.ndarray):
        self._tokens, self._targets = tokens, targets

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        return {  # Grain packs arrays, so these have the lengths, and nothing in them
            "tokens": np.broadcast_to(np.int8(0), self._tokens[index]),
            "targets": np.broadcast_to(np.int8(0), self._targets[index]),
            "record": index,
        }


class PackedData:
    """An endless data set of batches of packed rows, of the targets of one corpus.

    Attributes:
      num_conversations: that fit a row.
      num_dropped: that do not.
      target_positions: of an epoch, dropped ones left out.
      longest: tokens of the longest conversation that fits.
    """

    def __init__(
        self,
        shards: ShardSet,
        shape: RowShape,
        rows: int,
        seed: int,
        labels: Literal["teacher", "tokens"] = "teacher",
        loss_on: LossOn = "all",
    ):
        """Looks at the lengths of all conversations.

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
        shards.check()
        self._shape, self._rows, self._seed = shape, rows, seed
        self._labels = labels
        self._loss_on: LossOn = loss_on
        self._records = Records(shards)
        tokens, targets = _lengths_of(shards, loss_on)
        fits = (tokens <= shape.num_tokens) & (targets > 0) & (targets <= shape.num_targets)
        if not len(fits):
            raise InputError(f"{shards.folder} holds no {shards.name}")
        if not fits.any():
            raise InputError(
                f"none of the {len(fits)} conversations in {shards.folder} fits a row of "
                f"{shape.num_tokens} tokens with {shape.num_targets} targets; raise row_length"
            )
        self._lengths = _Lengths(tokens, targets)
        self._fits = fits
        self.num_conversations, self.num_dropped = int(fits.sum()), int((~fits).sum())
        self.target_positions, self.longest = int(targets[fits].sum()), int(tokens[fits].max())

    def packed(self) -> Any:
        """Which records lie in which row: a grain.IterDataset of batches, lists of lists."""
        dataset = (
            grain.MapDataset.source(self._lengths)
            .shuffle(seed=self._seed)
            .repeat()
            .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            .filter(lambda lengths: bool(self._fits[lengths["record"]]))
        )
        dataset = grain.experimental.FirstFitPackIterDataset(
            dataset,
            length_struct={"tokens": self._shape.num_tokens, "targets": self._shape.num_targets},
            num_packing_bins=PACKING_BINS,
            seed=self._seed,
            shuffle_bins=True,
            meta_features=("record",),
        )
        dataset = dataset.map(lambda row: [int(i) for i in row["record"]])
        return dataset.batch(self._rows, drop_remainder=True, batch_fn=list)

    def batches(self, own: Sequence[bool] | None = None) -> Any:
        """A grain.IterDataset of batches as `packed_row` makes rows, prepared ahead.

        Args:
          own: which rows of a batch are read, the others are zeros; None for all.
        """
        mine = [True] * self._rows if own is None else list(own)
        dataset = self.packed().map(lambda rows: self._read(rows, mine))
        return grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=AHEAD)

    def _read(self, rows: Sequence[Sequence[int]], own: Sequence[bool]) -> dict[str, np.ndarray]:
        made = [
            packed_row([self._conversation(i) for i in records], self._shape) if is_own else None
            for records, is_own in zip(rows, own, strict=True)
        ]
        like = next((row for row in made if row is not None), None)
        if like is None:
            like = packed_row([self._conversation(rows[0][0])], self._shape)
        batch = {name: np.zeros((len(rows), *x.shape), x.dtype) for name, x in like.items()}
        for i, row in enumerate(made):
            for name, x in (row or {}).items():
                batch[name][i] = x
        return batch

    def _conversation(self, index: int) -> dict[str, np.ndarray]:
        row = targets_file.decode_record(self._records[index], self._loss_on)
        return row if self._labels == "teacher" else targets_file.as_hard_labels(row)


def _lengths_of(shards: ShardSet, loss_on: LossOn) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets of all records, in the order of `Records`."""
    counts = targets_file.ROW_TARGETS[loss_on]
    tokens, targets = [], []
    for index in sorted(shards.units):
        unit = shards.units[index]
        if not {"row_tokens", counts} <= unit.keys():
            raise InputError(
                f"{shards.folder}: {shards.name}.manifest.jsonl does not say how long the rows of "
                f"unit {index} are; remove it to score them again"
            )
        tokens += unit["row_tokens"]
        targets += unit[counts]
    return np.asarray(tokens, np.int32), np.asarray(targets, np.int32)


def packed_row(
    conversations: Sequence[dict[str, np.ndarray]], shape: RowShape
) -> dict[str, np.ndarray]:
    """Puts conversations one after the other into the arrays of one row.

    Returns:
      token_ids, positions (from 0 in each segment), segment_start [T]; target_index, weight [M]
      and top_ids, top_logprobs [M, J]. Padding is a segment of its own without targets.
    """
    T, M, J = shape.num_tokens, shape.num_targets, conversations[0]["top_ids"].shape[1]
    row = {
        "token_ids": np.zeros(T, np.int32),
        "segment_start": np.zeros(T, np.int32),
        "target_index": np.zeros(M, np.int32),
        "top_ids": np.zeros((M, J), np.int32),
        "top_logprobs": np.zeros((M, J), np.float32),
        "target_weight": np.zeros(M, np.float32),
    }
    start = first = 0
    for told in conversations:
        end, last = start + len(told["token_ids"]), first + len(told["target_index"])
        row["token_ids"][start:end] = told["token_ids"]
        row["segment_start"][start:end] = start
        row["target_index"][first:last] = told["target_index"] + start
        row["top_ids"][first:last] = told["top_ids"]
        row["top_logprobs"][first:last] = told["top_logprobs"]
        row["target_weight"][first:last] = 1.0
        start, first = end, last
    row["segment_start"][start:] = start
    row["positions"] = (np.arange(T) - row["segment_start"]).astype(np.int32)
    return row


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
