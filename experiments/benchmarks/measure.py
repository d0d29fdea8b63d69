"""Timing side by side, and memory of this process: what the benchmarks share."""

import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Mapping

import jax


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each function, run in turn after one call each that compiles and warms up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return times


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, fastest and slowest in milliseconds."""
    values = {"median_ms": statistics.median(seconds), "low_ms": min(seconds)}
    return {k: round(v * 1e3, 2) for k, v in (values | {"high_ms": max(seconds)}).items()}


def product_flops(side: int = 2048, dtype: str = "float32") -> float:
    """FLOP a second of a large matrix product in jax: the best of ten."""
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    times = alternate({"": lambda: product(a).block_until_ready()}, 10)[""]
    return 2 * side**3 / min(times)


def anonymous_bytes() -> int:
    """Memory of this process that is not a file's: RssAnon of /proc/self/status."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class PeakMemory:
    """Samples the process's anonymous memory every 2 ms while its block runs.

    `before` is what it had at the start, `peak` the most that was seen; bytes.
    """

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
