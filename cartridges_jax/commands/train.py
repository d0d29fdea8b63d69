"""`cartridges train`."""

import os
import shlex
from typing import TYPE_CHECKING, Any

from absl import flags

from cartridges_jax.commands import common
from cartridges_jax.config import define_flags
from cartridges_jax.errors import InputError

if TYPE_CHECKING:
    from cartridges_jax.distillation.job import Job

HELP = "distil conversations into a cartridge, or many at once"


def config_class() -> Any:
    from cartridges_jax.distillation.config import TrainConfig

    return TrainConfig


def define(values: flags.FlagValues) -> None:
    common.define_model(values)
    common.define_processes(values)
    for name, text in (
        ("corpus", "The text that was studied: for the first values of the slots."),
        ("data", "Folder of conversations; their targets are scored if missing."),
        ("out", "Folder of checkpoints, metrics and NAME.cartridge."),
        (
            "jobs",
            "In place of these three: JSON Lines, each with corpus, data and out of one cartridge "
            "and, where they differ, settings such as num_slots.",
        ),
    ):
        common.define_string(values, name, "", text)
    flags.DEFINE_integer(
        "at_once",
        0,
        "With --jobs, cartridges that share a step: 1, or a multiple of the devices that share "
        "rows. 0: all, but at most 16 a device (and 1 where there are fewer jobs than devices).",
        flag_values=values,
    )
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    import jax

    from cartridges_jax import distributed
    from cartridges_jax.distillation.job import open_targets
    from cartridges_jax.distillation.train import train, train_many

    common.join_processes(values, saves=True)
    jobs = _jobs(values)
    if distributed.count() > 1:  # each scores its part on its own devices
        scorer = common.load_model(values)
        for job in jobs:
            open_targets(scorer, job.documents, job.data)
        del scorer
    config = jobs[0].config
    rows = config.rows_at_once or config.rows_per_step
    if values.jobs:
        # Where each device that shares rows has cartridges of its own, any number of rows will do.
        apart = values.at_once != 1 and len(jobs) >= jax.device_count() // max(1, values.mesh_model)
        model = common.load_model(values, None if apart else rows, spans_hosts=True)
        made = train_many(model, jobs, values.at_once)
    else:
        model = common.load_model(values, rows, spans_hosts=True)
        [job] = jobs
        made = [train(model, job.documents, job.data, job.out, job.config)]
    failed = [f"{j.out}: {m}" for j, m in zip(jobs, made, strict=True) if isinstance(m, InputError)]
    if distributed.is_primary():
        for job, found in zip(jobs, made, strict=True):
            if not isinstance(found, InputError):
                _tell(values, job, found)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")


def _jobs(values: flags.FlagValues) -> "list[Job]":
    from cartridges_jax.distillation.job import Job
    from cartridges_jax.distillation.jobs_file import read_jobs

    config = common.config_with_preset(config_class(), values)
    named = {name: str(values[name].value) for name in ("corpus", "data", "out")}
    if values.jobs:
        if any(named.values()):
            raise InputError("--jobs says corpus, data and out of each cartridge; leave the flags")
        return read_jobs(values.jobs, config)
    if values.at_once:
        raise InputError("--at_once is of --jobs")
    for name, value in named.items():
        if not value:
            raise InputError(f"--{name} must be given; see cartridges train --help")
    return [Job(common.load_corpus(values), named["data"], named["out"], config)]


def _tell(values: flags.FlagValues, job: "Job", found: Any) -> None:
    """Of a cartridge, or of where it lies."""
    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.distillation.job import cartridge_path

    cartridge = found if isinstance(found, Cartridge) else Cartridge.load(found)
    data = cartridge.provenance["data"]
    path = f"--cartridge={shlex.quote(os.fspath(cartridge_path(job.out)))}"
    print(
        f"trained {cartridge.num_slots} slots on {data['conversations']} conversations "
        f"({data['dropped']} fit no row and were left out)\n"
        f"use it: {common.next_command('chat', common.model_flags(values), path)}"
    )
