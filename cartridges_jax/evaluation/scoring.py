"""Right or wrong, and how sure: parsers of answers, intervals, paired differences.

An answer that cannot be parsed is wrong. All intervals are of 95 %: of shares Wilson's (JASA 22,
1927), of differences between two arms over the same questions Newcombe's for pairs (Statistics in
Medicine 17, 1998, 2635, method 10).
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence

Z95 = 1.959963984540054


def normalise(text: str) -> str:
    """Lower case, single spaces, no quotes around nor full stop behind: what "exact" compares."""
    text = re.sub(r"\s+", " ", text).strip(" \"'“”‘’")
    return text.rstrip(" .!\"'“”‘’").casefold()


def _contains(text: str, words: str) -> bool:
    """Whether words stand in a text from border to border: "4" is not in "14", "4.5" or "-4".

    Signs alone, such as "->", have no borders.
    """
    wanted, text = normalise(words), normalise(text)
    if not any(map(str.isalnum, wanted)):
        return wanted in text
    before = r"(?<!\w)(?<!\d[.,])(?<!(?<!\w)[-\u2212](?=\d))"
    return bool(re.search(rf"{before}{re.escape(wanted)}(?!\w)(?![.,]\d)", text))


def _canonical_json(text: str) -> str | None:
    """One text for all that mean the same; None if it is no JSON. 1 is 1.0, but not true."""

    def number(digits: str) -> float | int:
        return int(x) if (x := float(digits)).is_integer() else x

    try:
        return json.dumps(json.loads(text, parse_float=number), sort_keys=True)
    except (ValueError, RecursionError):
        return None


def _json_equal(given: str, accepted: str) -> bool:
    value = _canonical_json(given)
    return value is not None and value == _canonical_json(accepted)


def _lines(text: str) -> collections.Counter[str]:
    """Lines in any order, without a bullet; one that stands there twice counts twice."""
    said = (re.sub(r"^\s*[-*]\s+", "", line) for line in text.splitlines() if line.strip())
    return collections.Counter(map(normalise, said))


PARSERS: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda given, accepted: normalise(given) == normalise(accepted),
    "contains": _contains,
    "lines": lambda given, accepted: _lines(given) == _lines(accepted),
    "json": _json_equal,
}


def is_right(given: str, accepted: Sequence[str], parser: str) -> bool:
    """Whether an answer equals one of the accepted ones."""
    return any(PARSERS[parser](given, answer) for answer in accepted)


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of n questions with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float | None]:
        """As JSON, which has no NaN: the value over no questions is null."""
        return dataclasses.asdict(self) | {"value": self.value if self.n else None}


def wilson(right: int, n: int) -> Share:
    """Wilson's 95 % interval of `right` out of `n`."""
    if n == 0:
        return Share(math.nan, 0.0, 1.0, 0)
    p, z2 = right / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the formula's limit is exactly 0 or 1; rounding must not leave it.
    low = 0.0 if right == 0 else middle - half
    return Share(p, low, 1.0 if right == n else middle + half, n)


def paired_difference(a: Sequence[bool], b: Sequence[bool]) -> Share:
    """Share right in `a` less that in `b`, marks of the same questions [n], by Newcombe's method.

    The interval is about other questions on the same documents, with the same cartridges.
    """
    n = len(a)
    if n == 0:
        return Share(math.nan, -1.0, 1.0, 0)
    return Share((sum(a) - sum(b)) / n, *_newcombe(a, b), n)


def _newcombe(a: Sequence[bool], b: Sequence[bool]) -> tuple[float, float]:
    """The limits of both shares, joined with the correlation of the marks."""
    n = len(a)
    both = sum(x and y for x, y in zip(a, b, strict=True))
    right = sum(a), sum(b)
    neither = n - sum(right) + both
    agreement = both * neither - (right[0] - both) * (right[1] - both)
    agreement = max(agreement - n / 2, 0) if agreement > 0 else agreement
    spread = math.sqrt(math.prod(x * (n - x) for x in right))
    phi = agreement / spread if spread else 0.0
    of_a, of_b = (wilson(x, n) for x in right)

    def joined(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = of_a.value - of_b.value
    low = difference - joined(of_a.value - of_a.low, of_b.high - of_b.value)
    return low, difference + joined(of_a.high - of_a.value, of_b.value - of_b.low)
