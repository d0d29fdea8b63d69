"""`cartridges chat`."""

from absl import flags

from cartridges_jax.commands import common

HELP = "ask a cartridge in the terminal"


def config_class() -> None:
    return None


def define(values: flags.FlagValues) -> None:
    common.define_model(values)
    common.define_string(values, "cartridge", None, "The .cartridge file to ask.")
    flags.DEFINE_integer("max_tokens", 128, "Longest answer, tokens.", flag_values=values)
    flags.DEFINE_float("temperature", 0.0, "Of sampling; 0 is greedy.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.chat import chat

    cartridge = Cartridge.load(values.cartridge)
    chat(common.load_model(values, rows=1), cartridge, values.max_tokens, values.temperature)
