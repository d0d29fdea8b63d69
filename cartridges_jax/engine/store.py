"""The cartridges of a folder by name, in memory within a budget: the least used go first."""

import collections
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
from etils import epath

from cartridges_jax import files
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.engine.requests import Context
from cartridges_jax.errors import InputError

SUFFIX = ".cartridge"


@dataclasses.dataclass
class StoreCounts:
    """What was asked of a store."""

    hits: int = 0
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0


@dataclasses.dataclass
class _Kept:
    cartridge: Cartridge
    num_bytes: int
    version: tuple[int, int]  # time and size of its file


class CartridgeStore:
    """Loads a cartridge when it is asked for, and keeps it while the budget allows.

    A file that appears in the folder, or is written anew, is found by the next request. What a row
    still follows stays as long as the row, whatever the budget.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        make: Callable[[Sequence[Cartridge]], Context],
        budget_bytes: int,
    ):
        """Opens a folder.

        Args:
          folder: of NAME.cartridge files, in itself or one folder below (as `train` leaves them).
          make: joins cartridges to a context, such as `LanguageModel.context`; InputError for one
            of another model.
          budget_bytes: of the cartridges that are kept.
        """
        self._folder, self._make, self._budget = files.local_path(folder), make, budget_bytes
        self._kept: collections.OrderedDict[str, _Kept] = collections.OrderedDict()  # by use
        self._contexts: dict[tuple[str, ...], Context] = {}
        self._pinned: set[str] = set()
        self.counts = StoreCounts()

    def paths(self) -> dict[str, epath.Path]:
        """The files there are now, by name."""
        found = [*self._folder.glob(f"*{SUFFIX}"), *self._folder.glob(f"*/*{SUFFIX}")]
        return {path.name.removesuffix(SUFFIX): path for path in sorted(found, reverse=True)}

    @property
    def loaded(self) -> list[str]:
        """Names of those in memory, the least used first."""
        return list(self._kept)

    def pin(self, name: str) -> None:
        """Loads a cartridge, and keeps it until `unpin`."""
        self._load(name)
        self._pinned.add(name)

    def unpin(self, name: str) -> None:
        self._pinned.discard(name)

    def unload(self, name: str) -> None:
        """Lets a cartridge go; InputError if it is not in memory."""
        if name not in self._kept:
            raise InputError(f"the cartridge {name!r} is not loaded")
        self._pinned.discard(name)
        self._let_go(name)

    def context(self, *names: str) -> Context:
        """The context of one cartridge, or of several in their order.

        Raises:
          InputError: if there is none of a name, or it is damaged or of another model.
        """
        cartridges = [self._load(name) for name in names]
        if names not in self._contexts:
            self._contexts[names] = self._make(cartridges)
        return self._contexts[names]

    def _load(self, name: str) -> Cartridge:
        path = self.paths().get(name)
        if path is None:
            known = ", ".join(sorted(self.paths())[:8]) or "none"
            raise InputError(
                f"there is no cartridge {name!r} in {self._folder}; there are: {known}"
            )
        stat = pathlib.Path(path).stat()
        version = stat.st_mtime_ns, stat.st_size
        kept = self._kept.get(name)
        if kept is not None and kept.version == version:
            self.counts.hits += 1
            self._kept.move_to_end(name)
            return kept.cartridge
        if kept is not None:
            self._let_go(name)
        started = time.perf_counter()
        cartridge = Cartridge.load(path)
        num_bytes = sum(x.nbytes for x in jax.tree.leaves(cartridge))
        self._make_room(num_bytes)
        self.counts.loads += 1
        self.counts.load_seconds += time.perf_counter() - started
        self._kept[name] = _Kept(cartridge, num_bytes, version)
        return cartridge

    def _make_room(self, num_bytes: int) -> None:
        """Lets the least used go, until there is room or all that is left is pinned."""
        for name in list(self._kept):
            if sum(kept.num_bytes for kept in self._kept.values()) + num_bytes <= self._budget:
                return
            if name not in self._pinned:
                self._let_go(name)
                self.counts.evictions += 1

    def _let_go(self, name: str) -> None:
        del self._kept[name]
        self._contexts = {n: c for n, c in self._contexts.items() if name not in n}
