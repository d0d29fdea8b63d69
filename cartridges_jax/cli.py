"""The command line: `cartridges SUBCOMMAND --flag=value`.

Each subcommand is a pair of functions: one declares its flags, one does the work. Bad input ends
with one sentence and exit status 2; Ctrl-C with 130 and the promise that the same command goes on.
"""

import dataclasses
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cartridges_jax.config import define_flags, from_flags
from cartridges_jax.errors import InputError

if TYPE_CHECKING:
    from cartridges_jax.language_model import LanguageModel

_MODEL_HELP = (
    "Model: smollm2, a Hugging Face folder, a .gguf file, or a Hub name, downloaded once: "
    "org/name[@revision] or org/name[@revision]:FILE.gguf."
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: its help, its flags and what it does."""

    help: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues], None]


def _define_model(values: flags.FlagValues) -> None:
    _string(values, "model", "smollm2", _MODEL_HELP)
    flags.DEFINE_integer(
        "mesh_data", 1, "Devices that share the rows of a batch.", flag_values=values
    )
    flags.DEFINE_integer(
        "mesh_model", 1, "Devices that share one copy of the weights.", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ("auto", "float32", "bfloat16"),
        "Of weights and KV cache; auto is float32 on CPU, bfloat16 elsewhere.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "quantization",
        "none",
        ("none", "int8"),
        "int8 keeps the model's matrices in one byte a weight.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "template_option",
        [],
        "NAME=JSON: a variable of the model's chat template, such as enable_thinking=false; may be "
        "given several times.",
        flag_values=values,
    )


def _load_model(values: flags.FlagValues) -> "LanguageModel":
    from cartridges_jax.loading import load_model
    from cartridges_jax.sharding import make_mesh

    return load_model(
        values.model,
        dtype=None if values.dtype == "auto" else values.dtype,
        mesh=make_mesh(values.mesh_data, values.mesh_model),
        quantization=values.quantization,
        template_options=dict(map(_template_option, values.template_option)),
    )


def _model_flags(values: flags.FlagValues) -> str:
    """The flags that load the same model in the same way, for a command to run next."""
    given = [f"--model={values.model}"]
    for name in ("mesh_data", "mesh_model", "dtype", "quantization"):
        if values[name].value != values[name].default:
            given.append(f"--{name}={values[name].value}")
    given += [f"--template_option={option}" for option in values.template_option]
    return shlex.join(given)


def _template_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        if not name.isidentifier() or not equals:
            raise ValueError
        return name, json.loads(value)
    except ValueError:
        raise InputError(
            f"--template_option must be NAME=JSON, such as enable_thinking=false, got {text!r}"
        ) from None


def _string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values, required=default is None)


def _define_demo(values: flags.FlagValues) -> None:
    from cartridges_jax.demo import DemoConfig

    _define_model(values)
    _string(values, "out", "demo", "Folder for everything that is made.")
    define_flags(DemoConfig, values)


def _demo(values: flags.FlagValues) -> None:
    from cartridges_jax.demo import DemoConfig, run_demo

    run_demo(_load_model(values), values.out, from_flags(DemoConfig, values))


def _define_synthesize(values: flags.FlagValues) -> None:
    from cartridges_jax.self_study.synthesize import SynthesisConfig

    _define_model(values)
    _string(values, "corpus", None, "Text file or folder to study.")
    _string(values, "out", None, "Folder of the conversations.")
    define_flags(SynthesisConfig, values)


def _synthesize(values: flags.FlagValues) -> None:
    from cartridges_jax.corpus import load_documents
    from cartridges_jax.self_study.synthesize import SynthesisConfig, synthesize

    documents = load_documents(values.corpus)
    config = from_flags(SynthesisConfig, values)
    shards = synthesize(_load_model(values), documents, values.out, config)
    print(
        f"{shards.num_records} conversations about {len(documents)} documents in {values.out} "
        f"({shards.total('dropped')} more did not end, or the settings did not keep them)\n"
        f"next: cartridges train {_model_flags(values)} "
        f"{shlex.join([f'--corpus={values.corpus}', f'--data={values.out}'])} --out=FOLDER"
    )


def _define_train(values: flags.FlagValues) -> None:
    from cartridges_jax.distillation.train import TrainConfig

    _define_model(values)
    _string(values, "corpus", None, "The text that was studied: for the first values of the slots.")
    _string(values, "data", None, "Folder of conversations; their targets are scored if missing.")
    _string(values, "out", None, "Folder of checkpoints, metrics and NAME.cartridge.")
    define_flags(TrainConfig, values)


def _train(values: flags.FlagValues) -> None:
    from cartridges_jax.corpus import load_documents
    from cartridges_jax.distillation.train import TrainConfig, cartridge_path, train

    documents = load_documents(values.corpus)
    config = from_flags(TrainConfig, values)
    cartridge = train(_load_model(values), documents, values.data, values.out, config)
    data = cartridge.provenance["data"]
    print(
        f"trained {cartridge.num_slots} slots on {data['conversations']} conversations "
        f"({data['dropped']} fit no row and were left out)\n"
        f"use it: cartridges chat {_model_flags(values)} "
        f"--cartridge={shlex.quote(os.fspath(cartridge_path(values.out)))}"
    )


def _define_evaluate(values: flags.FlagValues) -> None:
    from cartridges_jax.evaluation.evaluate import EvaluateConfig

    _define_model(values)
    _string(values, "cartridge", None, "The .cartridge file to evaluate.")
    _string(values, "corpus", None, "The text it was made of: for the controls.")
    _string(
        values,
        "questions",
        "",
        "JSON Lines of {question, answers}; may be left out if --held_out is given.",
    )
    _string(
        values,
        "held_out",
        "",
        "Conversations that training did not see; may be left out if --questions are given.",
    )
    _string(
        values, "data", "", "Training conversations; held-out ones that ask the same do not count."
    )
    _string(values, "out", None, "Folder of results.json and report.html.")
    define_flags(EvaluateConfig, values)


def _evaluate(values: flags.FlagValues) -> None:
    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.corpus import load_documents
    from cartridges_jax.distillation.targets import score_targets
    from cartridges_jax.evaluation.evaluate import EvaluateConfig, evaluate
    from cartridges_jax.evaluation.questions import load_questions
    from cartridges_jax.evaluation.report import summary_table

    cartridge = Cartridge.load(values.cartridge)
    documents = load_documents(values.corpus)
    questions = load_questions(values.questions) if values.questions else []
    model = _load_model(values)
    if values.held_out:
        score_targets(model, values.held_out)
    results = evaluate(
        model, cartridge, documents, values.out, questions, values.held_out or None,
        from_flags(EvaluateConfig, values), values.data or None,
    )  # fmt: skip
    print(summary_table(results))
    print(f"report: {os.path.join(values.out, 'report.html')}")


def _define_chat(values: flags.FlagValues) -> None:
    _define_model(values)
    _string(values, "cartridge", None, "The .cartridge file to ask.")
    flags.DEFINE_integer("max_tokens", 128, "Longest answer, tokens.", flag_values=values)
    flags.DEFINE_float("temperature", 0.0, "Of sampling; 0 is greedy.", flag_values=values)


def _chat(values: flags.FlagValues) -> None:
    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.chat import chat

    cartridge = Cartridge.load(values.cartridge)
    chat(_load_model(values), cartridge, values.max_tokens, values.temperature)


def _define_info(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("json", False, "Print JSON instead of lines.", flag_values=values)


def _info(values: flags.FlagValues) -> None:
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


COMMANDS = {
    "demo": Command("a document in, a cartridge and a report out", _define_demo, _demo),
    "synthesize": Command("let the model study a corpus", _define_synthesize, _synthesize),
    "train": Command("distil conversations into a cartridge", _define_train, _train),
    "evaluate": Command("measure a cartridge beside its controls", _define_evaluate, _evaluate),
    "chat": Command("ask a cartridge in the terminal", _define_chat, _chat),
    "info": Command("explain a cartridge, data folder or model", _define_info, _info),
}


def usage() -> str:
    """The text of `cartridges --help`."""
    lines = [f"  {name:<12} {command.help}" for name, command in COMMANDS.items()]
    return (
        "usage: cartridges SUBCOMMAND [--flag=value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`cartridges SUBCOMMAND --help` lists the flags with defaults and units."
    )


def _command_help(name: str, command: Command, values: flags.FlagValues) -> str:
    lines = [f"cartridges {name}: {command.help}\n"]
    for flag in sorted(values.get_flags_for_module("cartridges"), key=lambda f: f.name):
        default = "required" if flag.default is None else f"default: {flag.default_as_str}"
        lines.append(f"  --{flag.name}\n      {flag.help} ({default})")
    return "\n".join(lines)


def _parse(name: str, argv: Sequence[str]) -> flags.FlagValues | None:
    """Parses the flags of a subcommand; None if help was asked for and printed."""
    values = flags.FlagValues()
    command = COMMANDS[name]
    command.define(values)
    for flag_name in list(values):
        values.register_flag_by_module("cartridges", values[flag_name])
    if any(word in ("--help", "-help", "-h", "--helpfull") for word in argv):
        print(_command_help(name, command, values))
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
    except KeyboardInterrupt:
        goes_on = argv[0] in ("demo", "synthesize", "train")
        kept = "; what is finished is kept, the same command goes on" if goes_on else ""
        print(f"\nstopped{kept}", file=sys.stderr)
        return 130
    return 0


def entry_point() -> Any:
    # Programs compiled once are found again by the next command; set before jax is imported.
    from cartridges_jax.files import cache_folder

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(cache_folder() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at exit
        status = 141  # as a shell says it of SIGPIPE
    sys.exit(status)


if __name__ == "__main__":
    entry_point()
