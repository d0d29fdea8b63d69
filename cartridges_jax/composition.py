"""Several contexts as one: each takes the positions behind those before it.

A cartridge is made as if it stood at the beginning of the context. Behind another one its keys are
turned further, by the positions that go before (`rebase`): between its own slots and to what comes
after all then is as it was. Each also brings a first slot of its own, the attention sink, of which
a model has seen one only: the others can be left out (`one_sink`). The paper joins cartridges
without either (arXiv 2506.06266, section 5.4): their slots then lie at the same positions.

What reading the texts in one context has beside this is what tokens of the later ones see of the
earlier ones; nothing of that is in any cartridge.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cartridges_jax.errors import InputError
from cartridges_jax.models.rope import Rope, apply_rope, rope_frequencies
from cartridges_jax.models.transformer import KV


@dataclasses.dataclass(frozen=True)
class Composition:
    """How contexts are joined."""

    rebase: bool = True  # each behind the positions of those before; else all from 0 on
    one_sink: bool = True  # of all but the first, the first slot is left out


JOINED = Composition()


class Place(NamedTuple):
    """Where a context comes to stand."""

    dropped: int  # leading slots that are left out
    offset: int  # positions by which its keys are turned
    length: int  # slots that are left
    positions: int  # that it takes of those behind it


def places(sizes: Sequence[tuple[int, int]], how: Composition = JOINED) -> list[Place]:
    """Where contexts of so many (slots, positions) stand, one behind the other.

    The sum of their positions is the position of what follows them all.

    Raises:
      InputError: if one has no slot beside its sink.
    """
    found: list[Place] = []
    end = 0  # the position behind those so far
    for length, positions in sizes:
        dropped = int(how.one_sink and bool(found))
        if length <= dropped:
            raise InputError(
                "a context of a single slot, its attention sink, cannot stand behind another one; "
                "compose it with one_sink=False"
            )
        offset = end - dropped if how.rebase else 0
        # Without turning, what follows begins where the longest of them ends.
        new_end = max(end, offset + positions)
        found.append(Place(dropped, offset, length - dropped, new_end - end))
        end = new_end
    return found


def put(kv: KV, place: Place, rope: Rope) -> KV:
    """The slots [L, P, K, H] of a context as they are in its place; P may be padded."""
    first, last = place.dropped, place.dropped + place.length
    k, v = (x if (first, last) == (0, x.shape[1]) else x[:, first:last] for x in kv)
    return KV(rebased(k, place.offset, rope) if place.offset else k, v)


def rebased(keys: Float[Array, "L P K H"], offset: int, rope: Rope) -> Float[Array, "L P K H"]:
    """Rotated keys, turned on by `offset` positions.

    The turn is a pure rotation: YaRN's factor is in the keys already.
    """
    angles = jnp.full((1, 1), offset, jnp.float32)[..., None] * rope_frequencies(
        rope, keys.shape[-1]
    )
    turn = jnp.cos(angles), jnp.sin(angles)
    return apply_rope(keys, turn)
