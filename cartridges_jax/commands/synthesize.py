"""`cartridges synthesize`."""

import shlex
from typing import Any

from absl import flags

from cartridges_jax.commands import common
from cartridges_jax.config import define_flags

HELP = "let the model study a corpus"


def config_class() -> Any:
    from cartridges_jax.self_study.config import SynthesisConfig

    return SynthesisConfig


def define(values: flags.FlagValues) -> None:
    common.define_model(values)
    common.define_processes(values)
    common.define_string(
        values,
        "corpus",
        None,
        "Text file or folder to study; of a folder what .gitignore names is left out.",
    )
    common.define_string(values, "out", None, "Folder of the conversations.")
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax import distributed
    from cartridges_jax.self_study.run import synthesize

    common.join_processes(values)
    documents = common.load_corpus(values)
    config = common.config_with_preset(config_class(), values)
    shards = synthesize(common.load_model(values), documents, values.out, config)
    paths = shlex.join([f"--corpus={values.corpus}", f"--data={values.out}"])
    preset = f"--preset={values.preset}" if values.preset else ""
    then = common.next_command("train", common.model_flags(values), paths, preset, "--out=FOLDER")
    if not distributed.is_primary():
        return
    print(
        f"{shards.num_records} conversations about {len(documents)} documents in {values.out} "
        f"({shards.total('dropped')} more were no requests, asked again, or did not end)\n"
        f"next: {then}"
    )
