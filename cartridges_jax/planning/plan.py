"""Plans a training job: does it fit, how long does a step take, what does it cost.

For TPUs the real step is compiled for the slice, with abstract weights, so whether it fits and what
devices send each other is the compiler's word; time is what peaks allow, and what a share of them
that is reached in practice allows. For GPUs all is arithmetic, and said to be.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.job import check_settings
from cartridges_jax.errors import InputError
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.weights import Quantization
from cartridges_jax.planning.chips import Slice, slices_of
from cartridges_jax.planning.collectives import by_kind, collectives_of
from cartridges_jax.planning.counting import Layout, Memory, Work, memory_of, work_of

MOST_COMPILED = 3  # layouts that are tried by the compiler for one slice
ROOM = 0.97  # of a device's memory that a program may take, by the compiler
GUESS = 0.85  # the same by arithmetic, which leaves out what the compiler adds
USUAL_SHARE = 0.45  # of peak products a second: MaxText


class DoesNotFitError(InputError):
    """A slice does not take what is asked for; another one may."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be planned.

    Attributes:
      config: of the model.
      training: settings; rows_at_once 0 is chosen here.
      cartridges: that share a step.
      quantization: of the weights.
      mesh_model: devices that share one copy of the weights; 0 is chosen here.
      mesh_data: devices that share rows; 0 for all that mesh_model leaves.
      fsdp: None is chosen here.
      save_products: None is chosen here.
    """

    config: ModelConfig
    training: TrainConfig
    cartridges: int = 1
    quantization: Quantization = "none"
    mesh_model: int = 0
    mesh_data: int = 0
    fsdp: bool | None = None
    save_products: bool | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step on a slice.

    Attributes:
      where: the slice.
      layout: how it lies on the devices.
      training: the settings, with rows_at_once.
      memory: of a device by kind, counted by us.
      work: of a device in a step, counted by us.
      compiled: what the compiler says in bytes: arguments, temporaries, and received by kind of
        collective; empty where nothing was compiled.
      hbm_bytes: of a device: the compiler's, else ours.
    """

    where: Slice
    layout: Layout
    training: TrainConfig
    memory: Memory
    work: Work
    compiled: dict[str, Any]
    hbm_bytes: float

    def seconds(self, share: float = 1.0) -> dict[str, float]:
        """What a step takes by products at a share of their peak, by memory, and by links.

        "gathers" are of weights, ahead of their use; "sums" of what devices wait for.
        """
        chip, told = self.where.chip, self.compiled.get("received")
        gathered, summed = self.work.gathered, self.work.summed
        if told is not None:
            # Where the compiler gathers a matrix piece by piece, its parts are passed on.
            gathered = told.get("all-gather", 0.0) + told.get("collective-permute", 0.0)
            summed = sum(told.values()) - gathered
        return {
            "products": self.work.flops / chip.flops / share,
            "memory": self.work.bytes_moved / chip.bandwidth,
            "gathers": gathered / chip.links,
            "sums": summed / chip.links,
        }

    @property
    def largest_rows_at_once(self) -> int:
        """About how many rows would fit together, as what grows with them does so evenly."""
        now = self.training.rows_at_once or self.training.rows_per_step
        fixed = self.memory.weights + self.memory.cartridges + self.memory.gathered
        of_rows = max(self.hbm_bytes - fixed, 1.0)
        most = int(now * (ROOM * self.where.chip.memory - fixed) / of_rows)
        shared = self.layout.data if self.layout.cartridges == 1 else 1
        return max(now, most // shared * shared)

    def step_seconds(self, share: float = 1.0) -> float:
        """A step, where products, memory and gathers work beside each other, and sums do not."""
        *together, sums = self.seconds(share).values()
        return max(together) + sums

    def tokens_per_chip(self, share: float = 1.0) -> float:
        """Tokens a second and chip."""
        return self.work.tokens / self.step_seconds(share) / self.where.chips


def plan(asked: Asked, where: Slice) -> Plan:
    """The fastest layout that fits a slice; for a TPU it has been compiled for it.

    Raises:
      InputError: if the settings cannot work, or nothing fits.
    """
    check_settings(asked.training)
    _check(asked, where)
    tried = []
    for guess in itertools.islice(_guesses(asked, where), MOST_COMPILED if where.is_tpu else 1):
        if not where.is_tpu:
            return guess
        found = _compile(asked, guess)
        if isinstance(found, Plan) and found.hbm_bytes <= ROOM * where.chip.memory:
            return found
        tried.append(found if isinstance(found, str) else _gib(found.hbm_bytes))
    least = min((_estimate(asked, where, *c) for c in _layouts(asked, where)), key=_total)
    by_kind_ = ", ".join(f"{k} {_gib(v)}" for k, v in dataclasses.asdict(least.memory).items())
    raise DoesNotFitError(
        f"it does not fit {where.name}: a device has {_gib(where.chip.memory)}, and the smallest "
        f"layout needs about {_gib(least.memory.total)} ({by_kind_})"
        + (f"; compiled: {'; '.join(tried)}" if tried else "")
        + "; take a larger slice, --quantization=int8, or fewer num_slots or row_length"
    )


def smallest_slice(asked: Asked, kind: str) -> Plan:
    """The plan for the smallest slice of a kind of accelerator that takes the job.

    Raises:
      InputError: if the settings cannot work, or none takes it; with the reason of the largest.
    """
    reason = None
    for where in slices_of(kind):
        try:
            return plan(asked, where)
        except DoesNotFitError as error:
            reason = error
    raise InputError(f"no slice of {kind} takes this job: {reason}") from reason


def _check(asked: Asked, where: Slice) -> None:
    c, rows = asked.config, asked.training.rows_per_step
    if asked.training.num_slots + asked.training.row_length > c.window:
        raise InputError(
            f"{asked.training.num_slots} slots and rows of {asked.training.row_length} tokens "
            f"exceed the model's window of {c.window}"
        )
    for name in ("mesh_model", "mesh_data"):
        size = getattr(asked, name)
        if size < 0 or (size and where.devices % size):
            raise DoesNotFitError(f"{name} {size} does not divide the {where.devices} devices")
    if asked.cartridges < 1:
        raise InputError(f"cartridges must be above 0, got {asked.cartridges}")
    if not any(True for _ in _layouts(asked, where)):
        raise DoesNotFitError(
            f"{rows} rows a step of {asked.cartridges} cartridges cannot be shared out to the "
            f"{where.devices} devices of {where.name}: one cartridge's rows_per_step, or the "
            "number of several, must be a multiple of mesh_data; raise it, or mesh_model"
        )


def _layouts(asked: Asked, where: Slice) -> Iterator[tuple[TrainConfig, Layout]]:
    """Every way that a step may lie on the devices of a slice."""
    c, rows = asked.config, asked.training.rows_per_step
    weight_bytes = 1.0 if asked.quantization == "int8" else 2.0
    sizes = [asked.mesh_model] if asked.mesh_model else [2**i for i in range(9)]
    for model in sizes:
        data = asked.mesh_data or where.devices // model
        if model * data != where.devices or c.vocab_size % model or c.mlp_size % model:
            continue
        if c.num_kv_heads % model and (model % c.num_kv_heads or c.num_heads % model):
            continue
        shared = asked.cartridges if asked.cartridges > 1 else rows
        if shared % data:
            continue
        for fsdp, saved in itertools.product((False, True), (True, False)):
            if asked.fsdp not in (None, fsdp) or asked.save_products not in (None, saved):
                continue
            if fsdp and (data == 1 or c.hidden_size % data):
                continue
            layout = Layout(data, model, fsdp, saved, asked.cartridges, weight_bytes)
            for at_once in _divisors(rows) if not asked.training.rows_at_once else [0]:
                at_once = asked.training.rows_at_once or at_once
                if asked.cartridges == 1 and at_once % data:
                    continue
                yield dataclasses.replace(asked.training, rows_at_once=at_once), layout


def _divisors(n: int) -> list[int]:
    return [i for i in range(n, 0, -1) if n % i == 0]


def _guesses(asked: Asked, where: Slice) -> list[Plan]:
    """Layouts that fit by arithmetic, the fastest first."""
    fitting = [
        guess
        for guess in (_estimate(asked, where, *each) for each in _layouts(asked, where))
        if _total(guess) <= GUESS * where.chip.memory
    ]
    return sorted(fitting, key=lambda p: (p.step_seconds(USUAL_SHARE), _total(p)))


def _total(guess: Plan) -> float:
    return guess.memory.total


def _estimate(asked: Asked, where: Slice, training: TrainConfig, layout: Layout) -> Plan:
    memory = memory_of(asked.config, training, layout)
    work = work_of(asked.config, training, layout)
    return Plan(where, layout, training, memory, work, {}, memory.total)


def _compile(asked: Asked, guess: Plan) -> Plan | str:
    """The same with what the compiler says, or why it cannot be compiled."""
    from cartridges_jax.planning.compiler import compile_train_step

    layout = guess.layout
    mesh = mesh_of(guess.where, layout.data, layout.model)
    try:
        program = compile_train_step(
            asked.config, mesh, guess.training, cartridges=layout.cartridges, dtype=jnp.bfloat16,
            quantization=asked.quantization, fsdp=layout.fsdp, save_products=layout.save_products,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:  # most often: out of memory
        return str(error).splitlines()[0][:160]
    exchanged = collectives_of(program.text)
    gathered = [one for one in exchanged if one.kind == "all-gather"]
    told = {
        "argument_bytes": program.argument_bytes,
        "temporary_bytes": program.temporary_bytes,
        "output_bytes": program.output_bytes,
        "compile_s": program.compile_s,
        "received": by_kind(exchanged),
        "largest_gather_bytes": max((one.result_bytes for one in gathered), default=0),
    }
    return dataclasses.replace(guess, compiled=told, hbm_bytes=float(program.hbm_bytes))


def mesh_of(where: Slice, data: int, model: int) -> Any:
    """The mesh of a slice that is not there.

    Raises:
      InputError: if the TPU compiler is not there either.
    """
    from cartridges_jax.planning.compiler import slice_mesh

    try:
        return slice_mesh(where.compiler_name, data, model)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"the TPU compiler cannot be used ({str(error).splitlines()[0]}); install it with "
            "pip install 'cartridges-jax[tpu]'"
        ) from error


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
