"""A model's parts, checked against each other before any weight is read.

`cartridges info` tells of them, and loading takes them: what one refuses the other refuses too.
"""

import dataclasses
import functools
import os
from typing import Any

from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import ChatTemplate, Message
from cartridges_jax.models.config import ModelConfig
from cartridges_jax.models.fingerprint import weights_fingerprint
from cartridges_jax.models.sources.base import ModelSource
from cartridges_jax.models.sources.locate import open_source
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.weights import check_names


@dataclasses.dataclass(frozen=True)
class ModelParts:
    """Config, tokenizer and template of a model, and where its weights are."""

    source: ModelSource
    config: ModelConfig
    template: ChatTemplate

    @property
    def tokenizer(self) -> Tokenizer:
        return self.template.tokenizer

    @functools.cached_property
    def weights_hash(self) -> str:
        """The fingerprint of the weights.

        Raises:
          InputError: if they are not the config's, damaged or not finite.
        """
        check_names(self.source.where, self.source.tensors(), self.config)
        return weights_fingerprint(self.source)


def open_parts(
    name: str | os.PathLike[str], template_options: dict[str, Any] | None = None
) -> ModelParts:
    """Opens a model by its name (see `sources/locate.py`).

    Raises:
      InputError: if a part is missing, damaged or unsupported, or two contradict each other.
    """
    source = open_source(name)
    config, tokenizer = source.config(), source.tokenizer()
    if tokenizer.num_pieces > config.vocab_size:
        raise InputError(
            f"{source.where}: the tokenizer has {tokenizer.num_pieces} tokens, the model "
            f"{config.vocab_size}"
        )
    # Added tokens that the model does not know may be there, as long as nothing becomes one.
    unknown = {t for t in tokenizer.added_tokens if tokenizer.id_of(t) >= config.vocab_size}
    template = ChatTemplate(tokenizer.reserving(unknown), source.chat_template(), template_options)
    written = set(stop_ids(config, template)) | set(_written(template))
    for token in sorted(unknown):
        if tokenizer.id_of(token) in written:
            raise InputError(
                f"{source.where}: the chat template writes {token!r}, whose id "
                f"{tokenizer.id_of(token)} is none of the model's {config.vocab_size} tokens"
            )
    return ModelParts(source, config, template)


def stop_ids(config: ModelConfig, template: ChatTemplate) -> tuple[int, ...]:
    """Tokens that end an answer: those of the configs, and what closes the template's turns."""
    return tuple(dict.fromkeys((*config.eos_token_ids, template.answer_end_id)))


def _written(template: ChatTemplate) -> list[int]:
    """What the template writes around a document, a question and an answer."""
    said = [Message(role=role, content="x") for role in ("user", "assistant", "user")]
    turns = template.render_turns(said, add_generation_prompt=True)
    return [*template.empty_context(), *template.render_context("", "x"), *turns]
