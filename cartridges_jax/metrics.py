"""What a long run tells people: a progress bar, a JSONL log and TensorBoard events.

The JSONL file is the record (plots and reports read it); on resume it is cut back to the step of
the checkpoint, so that a resumed run's log equals an uninterrupted one's. TensorBoard events are
written beside it where `tensorboardX` is installed.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from tqdm import tqdm

from cartridges_jax import files
from cartridges_jax.errors import InputError

_log = logging.getLogger(__name__)


def _is_primary() -> bool:
    """Whether this process shows what it does; `distributed.is_primary`, without importing jax."""
    jax = sys.modules.get("jax")
    return jax is None or jax.process_index() == 0


def progress(
    total: int, description: str, unit: str, initial: int = 0, *, scaled: bool = False
) -> "tqdm[Any]":
    """A progress bar with rate and time left; silent for work that ends within a second.

    `scaled` counts in thousands, millions and so on.
    """
    return tqdm(
        disable=not _is_primary(),
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
        with files.writing(self._folder / "events"):
            self._events = _event_log(os.fspath(self._folder), resume_step)

    def write(self, step: int, **values: float) -> None:
        """Records `values` of `step`."""
        with files.writing(self._folder / "metrics.jsonl"):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            if self._events is not None:
                self._events.write(step, values)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files."""
        with contextlib.suppress(OSError):  # of a full disk `write` has told
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


class _EventLog:
    """TensorBoard events, written at once.

    The writer that tensorboardX offers hands them to a thread, and waits for it forever once the
    disk was full.
    """

    def __init__(self, folder: str, resume_step: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        proto: Any = event_pb2  # generated
        self._event, self._scalar = proto.Event, summary.scalar
        self._writer = event_file_writer.EventsWriter(os.path.join(folder, "events"))
        again = proto.SessionLog(status=proto.SessionLog.START)
        self._writer.write_event(self._event(step=resume_step + 1, session_log=again))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            of_value = self._scalar(name, value)
            self._writer.write_event(
                self._event(wall_time=time.time(), step=step, summary=of_value)
            )
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _event_log(folder: str, resume_step: int) -> _EventLog | None:
    try:
        return _EventLog(folder, resume_step)
    except ImportError:
        _log.info("tensorboardX is not installed: no TensorBoard events (extra: metrics)")
        return None
