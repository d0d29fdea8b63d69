"""Units for the processes whose disks lack them, where disks are not shared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cartridges_jax import distributed
from cartridges_jax.shards import ShardSet

MOST_BYTES = 256 * 2**20  # that all processes together hand on at a time

_Unit = tuple[int, dict[str, Any], list[bytes]]  # its index, what the manifest says, its records


def exchange(shards: ShardSet, wanted: Mapping[int, str] | None = None) -> None:
    """Hands units to the processes that lack them; all processes call it together.

    Args:
      shards: of this process's disk.
      wanted: the `source` that each unit should have; None for any.
    """
    shards.refresh()
    while True:
        own = [
            index
            for index, unit in sorted(shards.units.items())
            if wanted is None or unit.get("source") == wanted.get(index)
        ]
        held = [set(json.loads(x)) for x in distributed.from_all(json.dumps(own).encode())]
        lacking = sorted(set.union(*held) - set.intersection(*held))
        if not lacking:
            return
        giver = {i: next(p for p, has in enumerate(held) if i in has) for i in lacking}
        mine = [i for i in lacking if giver[i] == distributed.index()]
        for given in distributed.from_all(_parcel(_first_of(shards, mine))):
            for index, facts, records in _opened(given):
                if index not in own:
                    shards.write(index, records, **facts)


def _first_of(shards: ShardSet, indices: Sequence[int]) -> list[_Unit]:
    """Units to hand on: as many as MOST_BYTES take when all do so, and one at least."""
    found, size = [], 0
    for index in indices:
        records = shards.records(index)
        size += sum(map(len, records))
        if found and size * distributed.count() > MOST_BYTES:
            break
        found.append((index, shards.units[index], records))
    return found


def _parcel(units: Sequence[_Unit]) -> bytes:
    """Units as bytes: what the manifest says of each, its records' lengths, and these."""
    told = [[index, facts, list(map(len, records))] for index, facts, records in units]
    head = json.dumps(told).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, *(r for u in units for r in u[2])])


def _opened(parcel: bytes) -> Iterator[_Unit]:
    """The inverse of `_parcel`."""
    at = 8 + int.from_bytes(parcel[:8], "little")
    for index, facts, lengths in json.loads(parcel[8:at]):
        records = []
        for length in lengths:
            records.append(parcel[at : at + length])
            at += length
        yield index, {k: v for k, v in facts.items() if k not in ("records", "sha256")}, records
