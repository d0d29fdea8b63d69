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
    rf"(?P<name>%[\w.\-]+) = (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
    r".*?channel_id=(?P<channel>\d+)"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_CALLS = re.compile(r"(?:calls|to_apply|called_computations)=\{?%([\w.\-]+)")
_WHILE = re.compile(r"condition=%([\w.\-]+), body=%([\w.\-]+)")
_CONSTANT = re.compile(r"(%\S+) = [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"(%\S+) = [su]32\[\]\S* get-tuple-element\(%[^)]*\), index=(\d+)")
_COMPARED = re.compile(r"compare\((%[^,\s]+), (%[^)\s]+)\), direction=LT")
_ADDED = re.compile(r"= [su]32\[\]\S* add\((%[^,\s]+), (%[^)\s]+)\)")


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
            if match["start"] and match["kind"] in ("all-gather", "collective-permute"):
                shapes = shapes[1:2]  # what comes in; the first is what goes out
            size, group = sum(map(_size, shapes)), _group_size(line)
            one = Collective(
                match["kind"], shapes, runs[name],
                runs[name] * size * _share(match["kind"], group),
            )  # fmt: skip
            # What is passed on from device to device has a channel for many steps.
            passed_on = match["kind"] == "collective-permute"
            key = match["name"] if passed_on else match["channel"]
            if key not in found or found[key].runs < one.runs:
                found[key] = one
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
    """How often each computation runs."""
    runs: dict[str, int] = collections.Counter({"": 1})
    todo = [""]
    while todo:
        name = todo.pop()
        for line in parts.get(name, []):
            called = dict.fromkeys(_CALLS.findall(line), runs[name])
            loop = _WHILE.search(line)
            if loop:
                called[loop[2]] = runs[name] * _trips(parts[loop[1]], parts[loop[2]])
            for target, count in called.items():
                if runs[target] < count:
                    runs[target] = count
                    todo.append(target)
    return runs


def _trips(condition: list[str], body: list[str]) -> int:
    """How often a loop runs whose counter goes from 0 to a constant; 1 where it is none of these.

    A loop that was unrolled adds more than 1 to its counter, the largest number it adds.
    """
    text, inside = "\n".join(condition), "\n".join(body)
    compared = _COMPARED.search(text)
    limit = dict(_CONSTANT.findall(text)).get(compared[2]) if compared else None
    if compared is None or limit is None:
        return 1
    place = dict(_ELEMENT.findall(text)).get(compared[1])
    counters = {name for name, index in _ELEMENT.findall(inside) if index == place}
    constants = dict(_CONSTANT.findall(inside))
    steps = [
        int(constants[b])
        for pair in _ADDED.findall(inside)
        for a, b in (pair, pair[::-1])
        if a in counters and b in constants
    ]
    return int(limit) // max(steps, default=1)
