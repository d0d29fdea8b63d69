"""`cartridges demo`."""

import os
import shlex
from typing import Any

from absl import flags

from cartridges_jax.commands import common
from cartridges_jax.config import define_flags, from_flags

HELP = "a document in, a cartridge and a report out"


def config_class() -> Any:
    from cartridges_jax.demo.run import DemoConfig

    return DemoConfig


def define(values: flags.FlagValues) -> None:
    common.define_model(values)
    common.define_processes(values)
    common.define_string(values, "out", "demo", "Folder for everything that is made.")
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax import distributed
    from cartridges_jax.demo.run import demo_cartridge, run_demo

    common.join_processes(values, saves=True)
    config = from_flags(config_class(), values)
    model = common.load_model(values)
    several = distributed.count() > 1
    trainer = common.load_model(values, spans_hosts=True) if several else model
    run_demo(model, values.out, config, trainer)
    if not distributed.is_primary():
        return
    path = f"--cartridge={shlex.quote(os.fspath(demo_cartridge(values.out, config)))}"
    print(f"Ask it:    {common.next_command('chat', common.model_flags(values), path)}")
