"""Where arrays live: one mesh with the axes ("data", "model") and the specs named by array axes.

Weights carry their own spec, made from the letters of their axes in `models.linear`; the other
modules build theirs from the axis names, `head_axis` and `query_axis` here. On a laptop both axes
have size 1. The mesh is explicit (`AxisType.Explicit`): shardings are part of an array's type, and
a contraction over a sharded axis has to say where its result lives.

Rows go over "data"; attention heads, MLP width and vocabulary over "model". Weights may be sharded
over "data" as well, by their width D (`weight_axes`): each device then keeps a part of every matrix
and gathers one layer's at a time (`gathered`).

Letters are those of WORKSPACE.md: B batch, T query length, S key length, P prefix slots, L layers,
N query heads, K kv heads, H head dim, D width, F MLP width, V vocabulary.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cartridges_jax.errors import InputError

DATA = "data"
MODEL = "model"

TOKENS_BT = P(DATA, None)
ACT_BTD = P(DATA, None, None)


def make_mesh(
    data: int | None = None, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Returns a (data, model) mesh over the first `data * model` devices.

    Args:
      data: number of row groups; None takes all devices that `model` leaves.
      model: number of devices that share one copy of the weights.
      devices: to take from; None for all, those of other processes too.

    Raises:
      InputError: if there are fewer devices than asked for, or `model` does not divide them.
    """
    devices = jax.devices() if devices is None else devices
    available = len(devices)
    if data is None:
        if model < 1 or available % model:
            raise InputError(f"{model=} does not divide the {available} devices of this machine")
        data = available // model
    if data < 1 or model < 1 or data * model > available:
        raise InputError(f"a {data}x{model} mesh needs {data * model} devices, {available} exist")
    # Neighbours on a TPU's wires share a model; 8 x 2 on a slice of 4 x 4 cuts one of its axes.
    placed = mesh_utils.create_device_mesh(
        (data, model), devices[: data * model], allow_split_physical_axes=True
    )
    return Mesh(placed, (DATA, MODEL), axis_types=(AxisType.Explicit, AxisType.Explicit))


def most_that_divide(rows: int, devices: int) -> int:
    """The largest number of devices, of so many, that rows can be shared out to evenly."""
    return next(n for n in range(max(devices, 1), 0, -1) if rows % n == 0)


def local_mesh() -> Mesh:
    """Returns the 1x1 mesh of this process's first device: the library's default."""
    return make_mesh(1, 1, jax.local_devices())


def head_axis(num_kv_heads: int) -> str | None:
    """Names the mesh axis that kv heads are split over, under the current mesh.

    Where "model" does not divide them, every device has them all; see `query_axis`.
    """
    size = jax.sharding.get_abstract_mesh().shape[MODEL]
    return MODEL if num_kv_heads % size == 0 else None


def query_axis(num_heads: int, num_kv_heads: int) -> str | None:
    """Names the mesh axis that query heads are split over, under the current mesh.

    They go with their kv heads. Where "model" is a multiple of these instead (8 kv heads on 16
    devices), several devices share the queries of one kv head. In other cases all devices compute
    all heads, and only the MLP and the vocabulary are split.
    """
    size = jax.sharding.get_abstract_mesh().shape[MODEL]
    shared_out = size % num_kv_heads == 0 and num_heads % size == 0
    return MODEL if head_axis(num_kv_heads) or shared_out else None


def weight_axes(num_heads: int, num_kv_heads: int, width: int, fsdp: bool) -> dict[str, str | None]:
    """The rules: from the letter of a weight's axis to the mesh axis it is split over, if any.

    Under the current mesh. With `fsdp` D is split over "data" where that divides it.
    """
    data = jax.sharding.get_abstract_mesh().shape[DATA]
    return {
        "N": query_axis(num_heads, num_kv_heads),
        "K": head_axis(num_kv_heads),
        "F": MODEL,
        "V": MODEL,
        "D": DATA if fsdp and data > 1 and width % data == 0 else None,
        "H": None,
    }


def gathered(weight: jax.Array) -> jax.Array:
    """A weight with all of its D on every device; what is split over "model" stays so."""
    spec = jax.typeof(weight).sharding.spec
    return jax.sharding.reshard(weight, without_data(spec)) if DATA in spec else weight


def without_data(spec: P) -> P:
    """A weight's spec once it is gathered."""
    return P(*(None if axis == DATA else axis for axis in spec))


def on_tpu() -> bool:
    """Whether what is traced now is compiled for a TPU, here or for a mesh that is not there."""
    return pltpu.is_tpu_device()


def on_cpu() -> bool:
    """Whether what is traced now is compiled for a CPU."""
    return jax.default_backend() == "cpu" and not on_tpu()


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the default device is fast at bfloat16: all but CPUs without such instructions."""
    if jax.default_backend() != "cpu":
        return True
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def place(mesh: Mesh, array: np.ndarray | jax.Array, spec: P) -> jax.Array:
    """Puts an array onto `mesh` with `spec`; each process gives at least what is of its devices."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
