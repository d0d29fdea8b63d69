"""The engine's sizes: rows and tokens of its steps, and the pages that devices have room for."""

import dataclasses
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cartridges_jax.config import setting
from cartridges_jax.engine.pages import PAGE
from cartridges_jax.errors import InputError
from cartridges_jax.models.transformer import Transformer
from cartridges_jax.sharding import DATA, MODEL

CPU_POOL = 2 * 2**30  # bytes that a pool takes of a machine without an accelerator, if it has them
SHARE = 0.5  # of what a device has left: others than the engine want some
MOST_APART = 4 * 2**30  # bytes of blocks that a CPU holds a second time while it decodes
LEAST_ROWS = 8  # a batch of fewer costs the same


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine, for each group of devices that holds the weights once."""

    max_rows: int = setting(64, "Requests that are answered at a time.", above=0)
    page_size: int = setting(PAGE, "Slots of a page of the KV pool, a power of two.", above=0)
    kv_gib: float = setting(
        0.0,
        "Memory of each device for KV pages, GiB; 0: half of what it has left, on a CPU 2.",
        at_least=0,
    )
    long_piece: int = setting(512, "Most prompt tokens that a step reads.", above=0)
    short_piece: int = setting(64, "What a step reads where fewer wait, tokens.", above=0)

    @property
    def piece_sizes(self) -> tuple[int, ...]:
        """The numbers of tokens that a step may read."""
        return tuple(sorted({min(self.short_piece, self.long_piece), self.long_piece}))

    @property
    def piece_rows(self) -> int:
        """Most prompts that end in one step."""
        return max(8, self.long_piece // 32)

    @property
    def row_sizes(self) -> tuple[int, ...]:
        """The numbers of rows that a step may decode."""
        sizes = [LEAST_ROWS]
        while sizes[-1] < self.max_rows:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)


def num_pages(model: Transformer, mesh: Mesh, config: EngineConfig) -> int:
    """Pages of each group of devices: as many as memory allows, and rows could ever fill.

    Raises:
      InputError: if there is no room for a single page beside page 0.
    """
    c = model.config
    shared_out = mesh.shape[MODEL] if c.num_kv_heads % mesh.shape[MODEL] == 0 else 1
    page = config.page_size * c.kv_floats_per_token * jnp.dtype(model.dtype).itemsize // shared_out
    per_row = -(-c.window // config.page_size)
    most = (config.max_rows + 1) * per_row + 1
    budget = config.kv_gib * 2**30 or _room(mesh, per_row * page)
    count = min(most, int(budget // page))
    if count < 2:
        raise InputError(
            f"a page of {config.page_size} slots takes {page / 2**20:.0f} MiB, and the pool may "
            f"take {budget / 2**20:.0f}; raise kv_gib or lower page_size"
        )
    return count


def _room(mesh: Mesh, window_bytes: int) -> int:
    """Bytes of each device that a pool may take; on a CPU at least what a whole window needs."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    left = [s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if "bytes_limit" in s]
    if left:
        return int(SHARE * min(left))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    wanted = max(CPU_POOL // mesh.shape[DATA], window_bytes)
    return min(wanted, int(SHARE * machine) // len(mesh.local_devices))


def takes_layers_apart(model: Transformer) -> bool:
    """Whether decoding is faster with a list of layers: on a CPU, if they may be held twice."""
    if jax.default_backend() != "cpu":
        return False
    return sum(x.nbytes for x in jax.tree.leaves(model.blocks)) <= MOST_APART
