"""The command line: `cartridges SUBCOMMAND --flag=value`.

Each subcommand is a module of `commands`. Bad input ends with one sentence and exit status 2;
Ctrl-C with 130 and the promise that the same command goes on.
"""

import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags

from cartridges_jax.commands import chat, demo, evaluate, info, plan, synthesize, train
from cartridges_jax.commands.common import DEFAULT_PRESET
from cartridges_jax.errors import InputError, StoppedError

COMMANDS: dict[str, Any] = {
    "demo": demo,
    "synthesize": synthesize,
    "train": train,
    "evaluate": evaluate,
    "chat": chat,
    "info": info,
    "plan": plan,
}
KEPT = "; what is finished is kept, the same command goes on"
RESUMABLE = ("demo", "synthesize", "train", "evaluate")


def usage() -> str:
    """The text of `cartridges --help`."""
    lines = [f"  {name:<12} {command.HELP}" for name, command in COMMANDS.items()]
    return (
        "usage: cartridges SUBCOMMAND [--flag=value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`cartridges SUBCOMMAND --help` lists the flags with defaults and units."
    )


def _command_help(name: str, values: flags.FlagValues) -> str:
    command = COMMANDS[name]
    defaults = _stage_defaults(name, command.config_class())
    lines = [f"cartridges {name}: {command.HELP}\n"]
    for flag in sorted(values.get_flags_for_module("cartridges"), key=lambda f: f.name):
        usual = "required" if flag.default is None else f"default: {flag.default_as_str}"
        lines.append(f"  --{flag.name}\n      {flag.help} ({defaults.get(flag.name, usual)})")
    return "\n".join(lines)


def _stage_defaults(name: str, config_class: Any) -> dict[str, str]:
    """What a stage's flags are where they are not given: by preset, or the field's default."""
    from cartridges_jax.presets import PRESETS

    said, default = {}, getattr(COMMANDS[name], "PRESET", DEFAULT_PRESET)
    for field in dataclasses.fields(config_class) if config_class is not None else ():
        by_preset = {p: v.get(field.name, field.default) for p, v in PRESETS.items()}
        if field.name == "preset":
            said[field.name] = f"default: {default}"
        elif name in ("synthesize", "train", "plan"):
            each = ", ".join(f"{preset} {value}" for preset, value in by_preset.items())
            same = len(set(by_preset.values())) == 1
            said[field.name] = (
                f"default: {by_preset[default]!r}" if same else f"default by preset: {each}"
            )
        else:
            said[field.name] = f"default: {field.default!r}"
    return said


def _parse(name: str, argv: Sequence[str]) -> flags.FlagValues | None:
    """Parses the flags of a subcommand; None if help was asked for and printed."""
    values = flags.FlagValues()
    COMMANDS[name].define(values)
    for flag_name in list(values):
        values.register_flag_by_module("cartridges", values[flag_name])
    if any(word in ("--help", "-help", "-h", "--helpfull") for word in argv):
        print(_command_help(name, values))
        return None
    try:
        positional = values([f"cartridges {name}", *argv])[1:]
    except flags.Error as error:
        text = str(error).replace("\n", " ").strip()
        raise InputError(f"{text}; see cartridges {name} --help") from error
    if positional and name != "info":
        raise InputError(f"{positional[0]!r} is no flag; flags are written --name=value")
    values.__dict__["positional"] = positional
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from cartridges_jax import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: there is no subcommand {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        values = _parse(argv[0], argv[1:])
        if values is not None:
            COMMANDS[argv[0]].run(values)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedError as error:
        print(f"\n{error}{KEPT}", file=sys.stderr)
        return 143  # as a shell says it of SIGTERM
    except KeyboardInterrupt:
        print(f"\nstopped{KEPT if argv[0] in RESUMABLE else ''}", file=sys.stderr)
        return 130
    return 0


def entry_point() -> Any:
    # Programs compiled once are found again by the next command; set before jax is imported.
    from cartridges_jax.files import cache_folder

    programs = cache_folder("xla")
    if programs is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(programs))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at exit
        status = 141  # as a shell says it of SIGPIPE
    except Exception:
        if not _leaves_others():
            raise
        traceback.print_exc()
        status = 1
    if status and _leaves_others():
        sys.stderr.flush()
        os._exit(status)  # at exit jax would wait for processes that wait for this one
    sys.exit(status)


def _leaves_others() -> bool:
    """Whether this is one of several processes; no backend is started to find out."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


if __name__ == "__main__":
    entry_point()
