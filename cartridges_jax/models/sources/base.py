"""What a source of models gives: the one interface behind which files of all kinds stand.

Nothing but a source opens a model's files. `locate.open_source` finds the source of a name.
"""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.tokenizer import Tokenizer

_ROWS = 4096  # of a matrix that are looked at together


@runtime_checkable
class Tensor(Protocol):
    """One weight as it lies in a file, by its Hugging Face name and layout."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, cut: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """Reads a part, a slice for each axis, as `dtype`; memory grows with the part."""
        ...


def blocks_of(tensor: Tensor) -> Iterator[np.ndarray]:
    """A tensor in float32, a block of rows in memory at a time."""
    count = tensor.shape[0]
    others = (slice(None),) * (len(tensor.shape) - 1)
    for start in range(0, count, _ROWS):
        yield tensor.read((slice(start, min(start + _ROWS, count)), *others), np.float32)


class ModelSource(abc.ABC):
    """A model's files. Everything is read when it is asked for."""

    where: str  # the file or folder, for people
    file: str = ""  # the name of the one file that holds the model, if one does

    @abc.abstractmethod
    def config(self) -> ModelConfig:
        """The sizes; InputError where the port does not compute what they ask for."""

    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; InputError where there is none, or it is damaged."""

    @abc.abstractmethod
    def chat_template(self) -> str:
        """The jinja source of the chat template; InputError where there is none."""

    @abc.abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by Hugging Face name; InputError where a file is missing or damaged."""

    @abc.abstractmethod
    def weight_files(self) -> list[str]:
        """The paths of the files that hold the weights."""

    @abc.abstractmethod
    def stored(self) -> Iterator[tuple[str, bytes | memoryview]]:
        """Each tensor as it is stored, in order of names: what it is, and its bytes."""
