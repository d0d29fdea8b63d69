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

import jax.numpy as jnp
from jaxtyping import Array, Float

from cartridges_jax.errors import InputError
from cartridges_jax.models.rope import Rope, apply_rope, rope_frequencies
from cartridges_jax.models.transformer import KV, Prefix


@dataclasses.dataclass(frozen=True)
class Composition:
    """How contexts are joined."""

    rebase: bool = True  # each behind the positions of those before; else all from 0 on
    one_sink: bool = True  # of all but the first, the first slot is left out


JOINED = Composition()


def composed(prefixes: Sequence[Prefix], rope: Rope, how: Composition = JOINED) -> list[Prefix]:
    """The contexts as they stand one behind the other.

    The sum of their `next_position` is the position of what follows them all.

    Args:
      prefixes: in their order; each as if it were the only one.
      rope: of the model.
      how: the joining.

    Raises:
      InputError: if a context has no slot beside its sink.
    """
    joined: list[Prefix] = []
    start = 0  # the position behind those so far
    for prefix in prefixes:
        length, positions = int(prefix.length), int(prefix.next_position)
        dropped = int(how.one_sink and bool(joined))
        if length <= dropped:
            raise InputError(
                "a context of a single slot, its attention sink, cannot stand behind another one; "
                "compose it with one_sink=False"
            )
        kv = KV(*(x[:, dropped:length] for x in prefix.kv)) if dropped else prefix.kv
        offset = start - dropped if how.rebase else 0
        if offset:
            kv = kv._replace(k=rebased(kv.k, offset, rope))
        # Without turning, what follows begins where the longest of them ends.
        end = start + positions - dropped if how.rebase else max(start, positions)
        joined.append(Prefix(kv, jnp.int32(length - dropped), jnp.int32(end - start)))
        start = end
    return joined


def rebased(keys: Float[Array, "L P K H"], offset: int, rope: Rope) -> Float[Array, "L P K H"]:
    """Rotated keys, turned on by `offset` positions.

    The turn is a pure rotation: YaRN's factor is in the keys already.
    """
    angles = jnp.full((1, 1), offset, jnp.float32)[..., None] * rope_frequencies(
        rope, keys.shape[-1]
    )
    turn = jnp.cos(angles), jnp.sin(angles)
    return apply_rope(keys, turn)
