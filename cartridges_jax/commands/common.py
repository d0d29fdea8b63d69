"""Flags that several subcommands have: the model, paths, presets."""

import json
import shlex
from typing import TYPE_CHECKING, Any

from absl import flags

from cartridges_jax.config import from_flags
from cartridges_jax.errors import InputError

if TYPE_CHECKING:
    from cartridges_jax.corpus import Document
    from cartridges_jax.language_model import LanguageModel

DEFAULT_PRESET = "laptop"


def define_string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    """Defines a text flag; without a default it must be given."""
    flags.DEFINE_string(name, default, text, flag_values=values, required=default is None)


def define_model(values: flags.FlagValues) -> None:
    """Defines the flags that say which model to load, and how."""
    define_string(
        values,
        "model",
        "smollm2",
        "Model: smollm2, a Hugging Face folder, a .gguf file, or a Hub name, downloaded once: "
        "org/name[@revision] or org/name[@revision]:FILE.gguf.",
    )
    flags.DEFINE_integer(
        "mesh_data",
        0,
        "Devices that share the rows of a batch; 0 for all that mesh_model leaves, in training as "
        "many of them as divide rows_per_step.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "mesh_model", 1, "Devices that share one copy of the weights.", flag_values=values
    )
    flags.DEFINE_bool(
        "fsdp",
        False,
        "Weights are split over the devices that share rows, too, and gathered a layer at a time: "
        "for models that do not fit otherwise.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ("auto", "float32", "bfloat16"),
        "Of weights and KV cache, on a CPU of the weights alone; auto is bfloat16, but float32 on "
        "a CPU without instructions for it.",
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


def define_processes(values: flags.FlagValues) -> None:
    """Defines the flags of a command that several processes can run together."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Joins the processes of one job, one a host, as TPU VMs, GKE, SLURM or MPI tell them; "
        "elsewhere give coordinator, num_processes and process_id to each.",
        flag_values=values,
    )
    define_string(values, "coordinator", "", "host:port of the first process of the job.")
    flags.DEFINE_integer("num_processes", 0, "Processes of the job.", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "Of this process, from 0.", flag_values=values)


def load_corpus(values: flags.FlagValues) -> "list[Document]":
    """Reads the corpus that the flags name, and tells what became of its files."""
    from cartridges_jax.corpus import read_corpus
    from cartridges_jax.distributed import is_primary

    corpus = read_corpus(values.corpus)
    for line in corpus.lines() if is_primary() else ():
        print(line)
    return corpus.documents


def join_processes(values: flags.FlagValues, saves: bool = False) -> None:
    """Finds the other processes of the job, if the flags say that there are some."""
    from cartridges_jax import distributed

    if values.distributed or values.coordinator or values.num_processes > 0:
        distributed.start(values.coordinator, values.num_processes, values.process_id, saves)


def load_model(
    values: flags.FlagValues, rows: int | None = None, spans_hosts: bool = False
) -> "LanguageModel":
    """Loads the model that the flags name.

    Args:
      values: the flags.
      rows: that its devices must be able to share; None if any number is padded.
      spans_hosts: whether it lives on the devices of all processes, or on this one's own.
    """
    from cartridges_jax.loading import load_model

    return load_model(
        values.model,
        dtype=None if values.dtype == "auto" else values.dtype,
        mesh=_mesh(values, rows, spans_hosts),
        quantization=values.quantization,
        fsdp=values.fsdp,
        template_options=dict(map(_template_option, values.template_option)),
    )


def _mesh(values: flags.FlagValues, rows: int | None, spans_hosts: bool) -> Any:
    """The mesh that the flags ask for, told in a line where there is more than one device."""
    import jax

    from cartridges_jax import distributed, sharding

    devices = jax.devices() if spans_hosts else jax.local_devices()
    model = max(values.mesh_model, 1)
    data = values.mesh_data
    if not spans_hosts and distributed.count() > 1:  # the part of the mesh that is here
        data = min(data, len(devices) // model)
    if data == 0:
        data = max(len(devices) // model, 1)
        data = data if rows is None else sharding.most_that_divide(rows, data)
    mesh = sharding.make_mesh(data, values.mesh_model, devices)
    idle = len(devices) - mesh.size
    why = f": a step of {rows} rows is shared by no more" if idle and not values.mesh_data else ""
    if (
        len({device.process_index for device in mesh.devices.flat})
        < distributed.count() * spans_hosts
    ):
        why = why or "; raise mesh_data"
        raise InputError(f"a mesh of {data} x {model} leaves out processes of this job{why}")
    if len(devices) > 1 and distributed.is_primary():
        print(
            f"devices: {data} x {model} {devices[0].device_kind} (rows x weights)"
            + (f", {idle} idle{why}" if idle else "")
            + (f", {distributed.count()} processes" if spans_hosts else "")
        )
    return mesh


def model_flags(values: flags.FlagValues) -> str:
    """The flags that load the same model in the same way, for a command to run next."""
    given = []
    for name in ("model", "mesh_data", "mesh_model", "fsdp", "dtype", "quantization"):
        if values[name].value != values[name].default:
            given.append(f"--{name}={values[name].value}")
    given += [f"--template_option={option}" for option in values.template_option]
    return shlex.join(given)


def next_command(name: str, *arguments: str) -> str:
    """A command line to run next."""
    return " ".join(["cartridges", name, *filter(None, arguments)])


def config_with_preset(config_class: type, values: flags.FlagValues) -> Any:
    """A stage's configuration: flags that were given, then the preset's values."""
    from cartridges_jax import presets

    name = values.preset if values.preset is not None else DEFAULT_PRESET
    return from_flags(config_class, values, presets.values_for(config_class, name))


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
