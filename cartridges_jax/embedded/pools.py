"""Words of the registers that the shipped weights were trained on: the lists of the world.

Values are drawn fresh for every document, so a model can only read them, never know them.
"""

import random
from collections.abc import Sequence

from cartridges_jax.embedded.world.pools import (
    CITIES,
    FEMALE,
    FIRST_NAMES,
    JOBS,
    LAST_NAMES,
    MEDICATIONS,
    SYLLABLES,
    made_up_name,
)
from cartridges_jax.embedded.world.pools import FIRM_HEADS as EMPLOYER_HEADS
from cartridges_jax.embedded.world.pools import FIRM_TAILS as EMPLOYER_TAILS

__all__ = [
    "CITIES", "EMPLOYER_HEADS", "EMPLOYER_TAILS", "FEMALE", "FIRST_NAMES", "JOBS", "LAST_NAMES",
    "MEDICATIONS", "SYLLABLES", "made_up_name", "pick_name",
]  # fmt: skip

MADE_UP_SHARE = 0.15  # share of last names and cities that are in no list


def pick_name(rng: random.Random, pool: Sequence[str]) -> str:
    """Draws from `pool`, or sometimes makes a name up."""
    return made_up_name(rng) if rng.random() < MADE_UP_SHARE else rng.choice(pool)
