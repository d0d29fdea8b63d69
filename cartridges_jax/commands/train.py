"""`cartridges train`."""

import os
import shlex
from typing import Any

from absl import flags

from cartridges_jax.commands import common
from cartridges_jax.config import define_flags

HELP = "distil conversations into a cartridge"


def config_class() -> Any:
    from cartridges_jax.distillation.config import TrainConfig

    return TrainConfig


def define(values: flags.FlagValues) -> None:
    common.define_model(values)
    common.define_processes(values)
    common.define_string(
        values, "corpus", None, "The text that was studied: for the first values of the slots."
    )
    common.define_string(
        values, "data", None, "Folder of conversations; their targets are scored if missing."
    )
    common.define_string(values, "out", None, "Folder of checkpoints, metrics and NAME.cartridge.")
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax import distributed
    from cartridges_jax.distillation.train import cartridge_path, open_targets, train

    common.join_processes(values)
    documents = common.load_corpus(values)
    config = common.config_with_preset(config_class(), values)
    if distributed.count() > 1:  # each scores its part on its own devices
        open_targets(common.load_model(values), documents, values.data)
    model = common.load_model(values, spans_hosts=True)
    cartridge = train(model, documents, values.data, values.out, config)
    if not distributed.is_primary():
        return
    data = cartridge.provenance["data"]
    path = f"--cartridge={shlex.quote(os.fspath(cartridge_path(values.out)))}"
    print(
        f"trained {cartridge.num_slots} slots on {data['conversations']} conversations "
        f"({data['dropped']} fit no row and were left out)\n"
        f"use it: {common.next_command('chat', common.model_flags(values), path)}"
    )
