"""Accelerators that can be rented: slices by the names their providers use, and what a device has.

Published peaks; a device is what jax calls one (a tpu7x chip is two). Prices are in prices.json,
with their date.
"""

import dataclasses
import json
import re
from typing import Any

from etils import epath

from cartridges_jax.errors import InputError

PRICES = epath.Path(__file__).parent / "prices.json"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device of a kind has."""

    memory: float  # bytes
    flops: float  # a second, bfloat16 products
    bandwidth: float  # bytes of its memory a second
    links: float  # bytes that it can receive from others a second
    devices: int = 1  # that jax sees of a chip


GIB = float(2**30)
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 448e9),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9),
    "tpu7x": Chip(96 * GIB, 1153e12, 3690e9, 600e9, devices=2),
    "h100": Chip(80e9, 989e12, 3350e9, 450e9),
    "h200": Chip(141e9, 989e12, 4800e9, 450e9),
    "b200": Chip(180e9, 2250e12, 8000e9, 900e9),
}
# Slices by what their name counts, and their shapes: chips, but for v5p, where it counts cores.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
SLICES = {
    "v5e": _FLAT,
    "v6e": _FLAT,
    "v5p": {2 * chips: shape for chips, shape in _CUBE.items()},
    "tpu7x": _CUBE,
}
GPUS = ("h100", "h200", "b200")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices that are connected with each other."""

    name: str
    kind: str
    chips: int
    shape: str = ""  # of a TPU slice

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def is_tpu(self) -> bool:
        return self.kind in SLICES

    @property
    def compiler_name(self) -> str:
        """What libtpu calls it; of a single chip, a host of which one is used."""
        return f"{self.kind}:{'2x2' if self.shape == '1x1' else self.shape}"

    @property
    def price(self) -> float | None:
        """Dollars an hour; None where no price is known."""
        price = prices()["dollars_per_chip_hour"].get(self.kind)
        return None if price is None else price * self.chips


def prices() -> dict[str, Any]:
    """The prices, with where they are from and of which day."""
    return json.loads(PRICES.read_text())


def slices_of(kind: str) -> list[Slice]:
    """All slices of a kind of TPU, the smallest first; of a GPU up to a host of eight."""
    if kind in GPUS:
        return [Slice(f"gpu:{kind}x{n}", kind, n) for n in (1, 2, 4, 8)]
    per_name = 2 if kind == "v5p" else 1
    return [
        Slice(f"{kind}-{number}", kind, number // per_name, shape)
        for number, shape in SLICES[kind].items()
    ]


def parse_slice(name: str) -> Slice:
    """A slice by its name, such as v5e-16, v5p-64 or gpu:h200x8.

    Raises:
      InputError: if there is none of that name; it says which there are.
    """
    tpu = re.fullmatch(r"(\w+)-(\d+)", name)
    if tpu and tpu[1] in SLICES:
        for one in slices_of(tpu[1]):
            if one.name == name:
                return one
        sizes = ", ".join(map(str, SLICES[tpu[1]]))
        raise InputError(f"there is no slice {name}; {tpu[1]} comes in {sizes}")
    gpu = re.fullmatch(r"gpu:(\w+?)(?:x(\d+))?", name)
    if gpu and gpu[1] in GPUS:
        count = int(gpu[2] or 1)
        if 1 <= count <= 8:
            return Slice(f"gpu:{gpu[1]}x{count}", gpu[1], count)
        raise InputError(f"{name}: one to eight GPUs of a host can be planned, not {count}")
    kinds = [*(f"{kind}-N" for kind in SLICES), *(f"gpu:{kind}xN" for kind in GPUS)]
    raise InputError(f"unknown topology {name!r}; known are {', '.join(kinds)}")
