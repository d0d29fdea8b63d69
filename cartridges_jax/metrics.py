"""What a long run tells people: a progress bar, a JSONL log and TensorBoard events.

The JSONL file is the record (plots and reports read it); on resume it is cut back to the step of
the checkpoint, so that a resumed run's log equals an uninterrupted one's. TensorBoard events are
written beside it where `tensorboardX` is installed.
"""

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

from etils import epath
from tqdm import tqdm

from cartridges_jax import files
from cartridges_jax.errors import InputError

_log = logging.getLogger(__name__)


def progress(
    total: int, description: str, unit: str, initial: int = 0, *, scaled: bool = False
) -> "tqdm[Any]":
    """A progress bar with rate and time left; silent for work that ends within a second.

    `scaled` counts in thousands, millions and so on.
    """
    return tqdm(
        total=total,
        initial=initial,
        desc=f"{description:<11}",
        unit=unit,
        delay=0.5,
        dynamic_ncols=True,
        unit_scale=scaled,
        smoothing=0.1,
    )


class MetricsLog:
    """Appends one JSON object per step to `folder/metrics.jsonl`; use as a context manager."""

    def __init__(self, folder: epath.PathLike, resume_step: int = 0):
        """Opens the log, dropping what was written after `resume_step`."""
        self._folder = epath.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        files.write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a")
        self._events = _event_writer(os.fspath(self._folder), resume_step)

    def write(self, step: int, **values: float) -> None:
        """Records `values` of `step`."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads a metrics log; a last line cut by a kill is left out."""
    path = epath.Path(path)
    return list(_whole_lines(path.read_bytes())) if path.exists() else []


def _whole_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise InputError(f"a line of metrics.jsonl is damaged: {line[:40]!r}")
            yield row


def _event_writer(folder: str, resume_step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        _log.info("tensorboardX is not installed: no TensorBoard events (extra: metrics)")
        return None
    return tensorboardX.SummaryWriter(folder, purge_step=resume_step + 1)
