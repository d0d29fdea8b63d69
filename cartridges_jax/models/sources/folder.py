"""A Hugging Face model folder: config.json, *.safetensors, a tokenizer and its chat template."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from cartridges_jax.errors import InputError
from cartridges_jax.models import config as model_config
from cartridges_jax.models.config import ModelConfig, read_json_object
from cartridges_jax.models.sources.base import ModelSource, Tensor
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.tokenizer_files import load_tokenizer


class FolderTensor:
    """A tensor of a safetensors file, read slice by slice by the library."""

    def __init__(self, handle: Any, name: str):
        self._slice = handle.get_slice(name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._slice.get_shape())

    def read(self, cut: tuple[slice, ...], dtype: Any) -> np.ndarray:
        return self._slice[cut].astype(dtype, copy=False)


class FolderSource(ModelSource):
    """A folder as `save_pretrained` writes it."""

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        self.where = str(self._folder)

    def config(self) -> ModelConfig:
        return model_config.read_config(self._folder)

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._folder)

    def chat_template(self) -> str:
        """Reads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`."""
        own = self._folder / "chat_template.jinja"
        if own.exists():
            try:
                return own.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise InputError(f"{own} cannot be read: {error}") from error
        path = self._folder / "tokenizer_config.json"
        source = read_json_object(path).get("chat_template") if path.exists() else None
        if isinstance(source, list):  # several by name
            named = {str(t.get("name")): t.get("template") for t in source if isinstance(t, dict)}
            source = named.get("default")
        if not isinstance(source, str) or not source:
            raise InputError(
                f"{self.where} has neither chat_template.jinja nor a chat_template in "
                "tokenizer_config.json; a chat model's folder has one"
            )
        return source

    def tensors(self) -> Mapping[str, Tensor]:
        return {name: FolderTensor(handle, name) for name, handle in self._handles().items()}

    def stored(self) -> Iterator[tuple[str, bytes | memoryview]]:
        handles = self._handles()
        for name in sorted(handles):
            value = handles[name].get_tensor(name)  # one tensor at a time
            data = np.ascontiguousarray(value).view(np.uint8).data
            yield f"{name} {value.dtype} {value.shape}", data

    def weight_files(self) -> list[str]:
        """The only safetensors file, or those that an index names; the former where both are."""
        folder = self._folder
        if (folder / "model.safetensors").exists():
            return [str(folder / "model.safetensors")]
        index = folder / "model.safetensors.index.json"
        if not index.exists():
            raise InputError(f"no model.safetensors in {folder}, nor an index of several files")
        names = read_json_object(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InputError(f"{index} has no weight_map")
        parts = sorted(set(map(str, names.values())))
        for name in parts:
            if not re.fullmatch(r"[\w.-]+\.safetensors", name):  # never out of the folder
                raise InputError(f"{index} names {name!r}, which is no safetensors file beside it")
            if not (folder / name).exists():
                raise InputError(f"{index} names {name}, which is not in the folder")
        return [str(folder / name) for name in parts]

    def _handles(self) -> dict[str, Any]:
        """The open file that holds each tensor, by its name."""
        try:
            opened = [safetensors.safe_open(p, framework="numpy") for p in self.weight_files()]
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"a weights file in {self.where} is damaged: {error}") from error
        return {name: handle for handle in opened for name in handle.keys()}  # noqa: SIM118 (a handle has keys but cannot be iterated)
