"""The distillation loop: trains the slots of cartridges against the teacher's targets.

Takes `targets-*`, hands on checkpoints and a `.cartridge`; `step.py` is what it repeats, `job.py`
what belongs to one cartridge. Several cartridges may share the steps: each has a place in them
until it is done, and the next one that waits takes the place. A run that was stopped goes on from
its last checkpoints and ends with the same bits.

The host works ahead: while devices compute a step, the rows of the next are packed, and the figures
of the one before are read and written. Time of a step grows with rows * T * (weights + L * N * H *
(p + T)); see the modules of the attention and the loss for memory.
"""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from cartridges_jax import distributed, files
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.distillation.budget import fitted, save_products
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.job import (
    Job,
    Training,
    cartridge_path,
    check_rows_are_shared,
    check_settings,
    open_targets,
)
from cartridges_jax.distillation.step import (
    PARTS,
    graph_of,
    make_train_step,
    no_cartridges,
    place_batch,
    put,
    taken,
)
from cartridges_jax.errors import DiskError, InputError, StoppedError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import progress
from cartridges_jax.sharding import DATA, on_cpu

# What cartridges that share their steps must have in common: the shapes and the loss of a step.
SHARED = (
    "num_frozen", "rows_per_step", "rows_at_once", "row_length", "loss", "labels", "recompute",
    "memory_gib",
)  # fmt: skip


def train(
    model: LanguageModel,
    documents: Sequence[Document],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    validate: Callable[[Cartridge], float] | None = None,
) -> Cartridge:
    """Trains a cartridge and writes it to `out/NAME.cartridge`; goes on if begun before.

    Args:
      model: the frozen base.
      documents: the corpus; this and what follows are as in `Job`.
      data: folder with targets, or with conversations.
      out: folder of checkpoints, metrics and the cartridge.
      config: settings.
      validate: scores a cartridge, higher is better; None takes the last one.

    Returns:
      The trained cartridge, with its provenance.

    Raises:
      InputError: on settings or data that cannot work, or a folder begun with others.
      StoppedError: if the process was told to stop; what is done is saved.
    """
    job = Job(documents, data, out, config or TrainConfig(), validate)
    [made] = _Loop(model, [job], 1).run()
    if isinstance(made, InputError):
        raise made
    return made


def train_many(
    model: LanguageModel, jobs: Sequence[Job], at_once: int = 0
) -> list[epath.Path | InputError]:
    """Trains a cartridge for each job, several in one step; goes on where it was begun before.

    Each job ends as if it had been trained alone, but for rounding, and leaves the same folder.

    Args:
      model: the frozen base, resident for all.
      jobs: what is to be trained; they may differ in all settings that are not in `SHARED`.
      at_once: cartridges of a step, a multiple of the devices that share rows (each holds its part
        of them), or 1, whose rows these devices share. 0 for as many as there are jobs, but at most
        16 a device, and 1 where there are fewer jobs than devices.

    Returns:
      Where the cartridges lie, in the order of the jobs; in place of one that could not be trained,
      why not. In several processes one that cannot even be opened ends all: they cannot agree.

    Raises:
      InputError: if the jobs cannot share steps, or the folder of one is that of another.
      StoppedError: if the process was told to stop; what is done is saved.
    """
    if not jobs:
        raise InputError("there is no job")
    _check_shared(jobs)
    devices = model.mesh.shape[DATA]
    if at_once < 0 or (at_once > 1 and at_once % devices):
        raise InputError(
            f"at_once {at_once} is neither 1 nor a multiple of the {devices} devices that share "
            "rows"
        )
    if not at_once:
        at_once = min(-(-len(jobs) // devices), 16) * devices
        if len(jobs) < devices:  # a device each would leave some idle; they share rows instead
            at_once = 1
    return _Loop(model, jobs, at_once).run()


def _check_shared(jobs: Sequence[Job]) -> None:
    first, seen = jobs[0].config, {}
    for number, job in enumerate(jobs, 1):
        for name in SHARED:
            ours, theirs = (getattr(config, name) for config in (first, job.config))
            if ours != theirs:
                raise InputError(
                    f"job {number} ({job.out}) has {name}={theirs}, job 1 has {ours}; jobs that "
                    "share steps need the same"
                )
        if first.row_shape() != job.config.row_shape():
            raise InputError(f"job {number} ({job.out}) has other targets_per_row than job 1")
        folder = os.path.realpath(files.local_path(job.out))
        if folder in seen:
            raise InputError(f"jobs {seen[folder]} and {number} have the same out, {job.out}")
        seen[folder] = number


class _Loop:
    """Jobs that go through the places of one step."""

    def __init__(self, model: LanguageModel, jobs: Sequence[Job], count: int):
        self._model, self._jobs = model, jobs
        largest = max((job.config for job in jobs), key=lambda config: config.num_slots)
        check_settings(largest)
        if count == 1:
            check_rows_are_shared(largest, model)
        self._shared = fitted(model, largest, count)  # what a step's shape depends on
        self._waiting = collections.deque(enumerate(jobs))
        self._count = count  # of places
        self._at: dict[int, Training] = {}  # who has which
        self._number: dict[int, int] = {}  # of the job in a place
        self._rows: dict[int, dict[str, np.ndarray]] = {}  # of the next step, by place
        self._made: dict[int, Cartridge | epath.Path | InputError] = {}
        self._places: Any = None  # step.Places, and the step, once there is a cartridge
        self._step: Any = None
        self._late: tuple[dict[int, int], Any] | None = None  # places at which steps, and figures
        self._held: dict[int, dict[str, float]] = {}  # read, and not yet written
        self._last = time.perf_counter()

    def run(self) -> list[Any]:
        """Trains all jobs to their end: what each made, or why it could not be."""
        self._open_targets()
        total = sum(job.config.num_steps for job in self._jobs)
        unit = "step" if len(self._jobs) == 1 else "cartridge-step"
        with distributed.stopping() as stops, contextlib.closing(self):
            self._bar = progress(total, "train", unit)
            number = 0
            while self._fill():
                batch = self._next_batch()
                with jax.set_mesh(self._model.mesh):
                    learning, figures = self._step(*self._places, self._model.transformer, batch)
                self._places = self._places._replace(learning=learning)
                number += 1
                self._advance(figures, stops(number))
        return [self._made[i] for i in range(len(self._jobs))]

    def _open_targets(self) -> None:
        """Scores what has no targets yet: before training, as SIGTERM then still ends at once."""
        for number, job in list(self._waiting):
            try:
                open_targets(self._model, job.documents, job.data)
            except InputError as error:
                self._not_opened(error)
                self._made[number] = error
                self._waiting.remove((number, job))

    def _not_opened(self, error: InputError) -> None:
        """Raises what other processes may not have met: they would wait for this one."""
        if isinstance(error, DiskError) or distributed.count() > 1:
            raise error

    def close(self) -> None:
        """Ends what is still open."""
        for training in self._at.values():
            training.close()
        self._bar.close()

    # ---- places

    def _fill(self) -> bool:
        """Gives free places to jobs that wait; whether there is anything to do."""
        for place in range(self._count):
            while place not in self._at and self._waiting:
                self._number[place], job = self._waiting.popleft()
                with self._failing(place, alike=False):
                    self._take(place, job)
        return bool(self._at)

    def _take(self, place: int, job: Job) -> None:
        training = Training(self._model, job)
        self._at[place] = training
        one = training.begin(self._own_rows(place))
        self._bar.update(training.step)
        if training.is_done:
            return self._leave(place)
        with jax.set_mesh(self._model.mesh):
            if self._places is None:
                config = self._shared
                self._places = no_cartridges(one, self._count, config.num_slots)
                one_by_one = self._count > 1 and self._model.mesh.size == 1 and on_cpu()
                self._step = make_train_step(
                    graph_of(config), config.loss, save_products(config), one_by_one
                )
            self._places = put(self._places, place, one)
        self._rows[place] = next(training.rows)

    def _leave(self, place: int) -> None:
        """Hands on the cartridge of a job that is done, and frees its place."""
        training = self._at.pop(place)
        training.close()
        made = training.result()
        # Of many, those that are done need not stay in memory.
        many = len(self._jobs) > 1
        self._made[self._number[place]] = cartridge_path(training.folder) if many else made

    @contextlib.contextmanager
    def _failing(self, place: int, alike: bool = True) -> Any:
        """A job that cannot go on is none of the others' business.

        `alike`: all processes meet the same error, if any.
        """
        try:
            yield
        except InputError as error:
            if isinstance(error, DiskError) or not alike:
                self._not_opened(error)
            self._made[self._number[place]] = error
            self._rows.pop(place, None)
            if place in self._at:
                with contextlib.suppress(InputError):
                    self._at.pop(place).close()

    # ---- rows

    def _own_rows(self, place: int) -> list[bool]:
        """Which of a cartridge's rows this process reads."""
        config, count = self._shared, self._count
        at_once = config.rows_at_once
        sharding = NamedSharding(self._model.mesh, PARTS)
        shape = (config.rows_per_step // at_once, count * at_once)
        own = np.zeros(shape, bool)
        for index in sharding.addressable_devices_indices_map(shape).values():
            own[index] = True
        return own[:, place * at_once : (place + 1) * at_once].reshape(-1).tolist()

    def _next_batch(self) -> dict[str, Any]:
        """The rows of all places on the mesh; those of an empty place have no targets."""
        parts = self._shared.rows_per_step // self._shared.rows_at_once
        like = next(iter(self._rows.values()))
        batch = {}
        for name, x in like.items():
            of_each = [self._rows.get(place, {}).get(name) for place in range(self._count)]
            stacked = np.stack([np.zeros_like(x) if own is None else own for own in of_each])
            cut = stacked.reshape(len(of_each), parts, -1, *x.shape[1:]).swapaxes(0, 1)
            batch[name] = cut.reshape(parts, -1, *x.shape[1:])
        self._rows = {}
        return place_batch(self._model.mesh, batch)

    # ---- behind a step that still runs

    def _advance(self, figures: Any, stop: bool) -> None:
        """Prepares the next rows, tells of the last step, saves what is to be saved."""
        steps, data, saving = {}, {}, set()
        for place, training in list(self._at.items()):
            training.step += 1
            steps[place] = training.step
            if training.is_saving or stop:
                saving.add(place)
                data[place] = training.rows.get_state()
            if not training.is_done and not stop:
                with self._failing(place, alike=False):
                    self._rows[place] = next(training.rows)
        self._tell()
        # Who has just failed has no part in this step's figures, nor has who comes in its place.
        self._late = ({p: step for p, step in steps.items() if p in self._at}, figures)
        if not saving:
            return
        with jax.set_mesh(self._model.mesh):
            self._tell(saving)
            for place in saving:
                self._save(place, data[place])
        for place in sorted(saving & self._at.keys()):
            if self._at[place].is_done:
                with self._failing(place):
                    self._leave(place)
        self._last = time.perf_counter()
        if stop and (self._at or self._waiting):
            done = ", ".join(f"{t.folder} at step {t.step}" for t in self._at.values())
            raise StoppedError(f"stopped: {done or 'between two jobs'}")

    def _save(self, place: int, data: Any) -> None:
        if place not in self._at:  # it has just failed
            return
        training = self._at[place]
        slots = training.config.num_slots - training.config.num_frozen
        with self._failing(place):
            learning = taken(self._places.learning, place, slots)
            figures = training.validated(learning) if training.is_saving else {}
            training.write(training.step, **self._held.pop(place), **figures)
            training.save(learning, data)

    def _tell(self, held: Any = ()) -> None:
        """Reads and logs the figures of the last step; those of `held` places are kept."""
        if self._late is None:
            return
        steps, figures = self._late
        self._late, self._held = None, {}
        read = {name: np.asarray(values) for name, values in figures.items()}
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        tokens = self._shared.rows_per_step * self._shared.row_length
        for place, step in steps.items():
            values = {name: float(x[place]) for name, x in read.items()}
            values["tokens_per_s"] = tokens / seconds
            if place in held:
                self._held[place] = values
                continue
            with self._failing(place):
                self._at[place].write(step, **values)
        self._bar.update(len(steps))
        if steps:
            kl = np.mean([read["kl"][place] for place in steps])
            self._bar.set_postfix(kl=f"{kl:.3f}", tok_s=f"{tokens * len(steps) / seconds:.0f}")
