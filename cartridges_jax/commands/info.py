"""`cartridges info`."""

import json

from absl import flags

from cartridges_jax.errors import InputError

HELP = "explain a cartridge, data folder or model"


def config_class() -> None:
    return None


def define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("json", False, "Print JSON instead of lines.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax.info import describe

    paths = values.positional
    if not paths:
        raise InputError("give info something to explain: cartridges info FILE_OR_FOLDER")
    for path in paths:
        fields = describe(path)
        if values.json:
            print(json.dumps(fields, indent=2))
        else:
            print("\n".join(f"{key:<16} {value}" for key, value in fields.items()))
