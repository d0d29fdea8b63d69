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
    common.define_string(values, "out", "demo", "Folder for everything that is made.")
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax.demo.run import demo_cartridge, run_demo

    config = from_flags(config_class(), values)
    run_demo(common.load_model(values), values.out, config)
    path = f"--cartridge={shlex.quote(os.fspath(demo_cartridge(values.out, config)))}"
    print(f"Ask it:    {common.next_command('chat', common.model_flags(values), path)}")
