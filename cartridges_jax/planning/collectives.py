"""What devices send each other in a compiled program: read from its HLO.

A collective counts as often as the loops around it run; one that the compiler has cut into a start,
steps beside other work and an end has one channel, and counts once.
"""

import collections
import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_ARRAY = re.compile(r"\b(pred|s8|u8|bf16|f16|s32|u32|f32)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    rf"= (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(.*?channel_id=(?P<channel>\d+)"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply|called_computations)=\{?%([\w.\-]+)")
_WHILE = re.compile(r"condition=%([\w.\-]+), body=%([\w.\-]+)")
_LIMIT = re.compile(r"s32\[\]\S* constant\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One of a program, with the bytes that a device takes in for it, all its runs together."""

    kind: str
    shapes: tuple[str, ...]  # of its result, such as "bf16[1,2048,8192]"
    runs: int
    received: float

    @property
    def result_bytes(self) -> int:
        return sum(map(_size, self.shapes))


def collectives_of(hlo: str) -> list[Collective]:
    """All collectives of a program, the most bytes first."""
    parts = _computations(hlo)
    runs = _runs(parts)
    found: dict[str, Collective] = {}
    for name, lines in parts.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None or not runs[name]:
                continue
            shapes = tuple(f"{kind}[{size}]" for kind, size in _ARRAY.findall(match["result"]))
            size, group = sum(map(_size, shapes)), _group_size(line)
            one = Collective(
                match["kind"], shapes, runs[name],
                runs[name] * size * _share(match["kind"], group),
            )  # fmt: skip
            before = found.get(match["channel"])
            if before is None or before.runs < one.runs:
                found[match["channel"]] = one
    return sorted(found.values(), key=lambda one: -one.received)


def by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Bytes that a device receives in a run of the program, by kind."""
    total = dict.fromkeys((one.kind for one in collectives), 0.0)
    for one in collectives:
        total[one.kind] += one.received
    return total


def _share(kind: str, group: int) -> float:
    """Bytes received for each byte of the result, where each device passes on what it has."""
    others = (group - 1) / group
    return {
        "all-gather": others,
        "all-reduce": 2 * others,
        "reduce-scatter": group - 1.0,
        "all-to-all": others,
        "collective-permute": 1.0,
    }[kind]


def _size(shape: str) -> int:
    kind, _, axes = shape.rstrip("]").partition("[")
    return _BYTES[kind] * math.prod(int(n) for n in axes.split(",") if n)


def _group_size(line: str) -> int:
    """Devices of one group, in the three ways that HLO writes them."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if tiled:
        return int(tiled[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed[1].split(",")) if listed else 2


def _computations(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation; that of the entry is named ""."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = parts.setdefault("" if match["entry"] else match["name"], [])
        else:
            lines.append(line)
    return parts


def _runs(parts: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs; a loop's limit is the constant that its condition holds."""
    runs: dict[str, int] = collections.Counter({"": 1})
    todo = [""]
    while todo:
        name = todo.pop()
        for line in parts.get(name, []):
            called = dict.fromkeys(_CALLS.findall(line), runs[name])
            loop = _WHILE.search(line)
            if loop:
                limits = [int(n) for text in parts[loop[1]] for n in _LIMIT.findall(text)]
                called[loop[2]] = runs[name] * max(limits, default=1)
            for target, count in called.items():
                if runs[target] < count:
                    runs[target] = count
                    todo.append(target)
    return runs
