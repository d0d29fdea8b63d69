"""What became of every file of a corpus: read, or left out and why; for people."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

SHOWN = 3  # names for each reason


@runtime_checkable
class Named(Protocol):
    """A document, as far as it is counted here."""

    name: str
    length: int


@dataclasses.dataclass(frozen=True)
class CorpusSummary:
    """Every file of a corpus, once."""

    lengths: dict[str, int]  # characters of each document by its name
    left_out: dict[str, list[str]]  # names by the reason

    @classmethod
    def of(
        cls, documents: Sequence[Named], left_out: Mapping[str, Sequence[str]]
    ) -> "CorpusSummary":
        """Counts documents; `left_out` are names by the reason."""
        reasons = sorted(left_out, key=lambda why: (-len(left_out[why]), why))
        lengths = {document.name: document.length for document in documents}
        return cls(lengths, {why: list(left_out[why]) for why in reasons})

    def by_kind(self) -> dict[str, int]:
        """Characters by the ending of the name, the most first."""
        counts: dict[str, int] = {}
        for name, length in self.lengths.items():
            kind = pathlib.PurePosixPath(name).suffix.lower() or "no ending"
            counts[kind] = counts.get(kind, 0) + length
        return dict(sorted(counts.items(), key=lambda one: -one[1]))

    def told_left_out(self, most: int = SHOWN) -> str:
        """What was left out, with the first names for each reason."""
        parts = []
        for why, names in self.left_out.items():
            more = ", ..." if len(names) > most else ""
            parts.append(f"{len(names):,} {why} ({', '.join(names[:most])}{more})")
        return "; ".join(parts)

    def lines(self, most: int = SHOWN) -> list[str]:
        """The summary, a line each for what was read, the largest and what was left out."""
        total = sum(self.lengths.values())
        kinds = [f"{kind} {100 * n / total:.0f} %" for kind, n in self.by_kind().items()]
        largest = sorted(self.lengths.items(), key=lambda one: -one[1])[:3]
        told = [
            f"corpus: {len(self.lengths):,} documents, {total:,} characters "
            f"({', '.join(kinds[:6])}{', ...' if len(kinds) > 6 else ''})",
            "largest: " + ", ".join(f"{name} {length:,}" for name, length in largest),
        ]
        if self.left_out:
            told.append(f"left out: {self.told_left_out(most)}")
        return told
