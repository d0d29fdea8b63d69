"""Right or wrong, and how sure: parsers of answers, intervals, paired differences.

An answer that cannot be parsed is wrong. Intervals of shares are Wilson's (JASA 22, 1927) at 95 %;
differences between two arms over the same questions are bootstrapped over questions, in pairs.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Z95 = 1.959963984540054
BOOTSTRAP_SAMPLES = 10_000


def normalise(text: str) -> str:
    """Lower case, single spaces, no quotes or full stop around: what "exact" compares."""
    return re.sub(r"\s+", " ", text).strip().strip("\"'").rstrip(".!").strip().casefold()


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _json_equal(given: str, accepted: str) -> bool:
    value = _as_json(given)
    return value is not None and value == _as_json(accepted)


def _line_set(text: str) -> frozenset[str]:
    return frozenset(normalise(line.lstrip("-* ")) for line in text.splitlines() if line.strip())


PARSERS: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda given, accepted: normalise(given) == normalise(accepted),
    "contains": lambda given, accepted: normalise(accepted) in normalise(given),
    "lines": lambda given, accepted: _line_set(given) == _line_set(accepted),
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


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, seed: int = 0) -> Share:
    """Mean of a - b (marks [n] of the same questions) with a bootstrapped 95 % interval."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(difference)
    if n == 0:
        return Share(math.nan, -1.0, 1.0, 0)
    rng = np.random.default_rng(seed)
    means = [difference[rng.integers(0, n, n)].mean() for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Share(float(difference.mean()), float(low), float(high), n)
