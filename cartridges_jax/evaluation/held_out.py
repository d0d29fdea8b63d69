"""Conversations that training did not see, with the teacher's targets."""

import dataclasses
import os

from cartridges_jax.config import first_difference
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.self_study import conversation
from cartridges_jax.self_study.conversation import Conversation, load_conversations
from cartridges_jax.shards import ShardSet


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Conversations that training did not see, with their target records in the same order."""

    conversations: list[Conversation]
    records: list[bytes]
    num_seen: int  # left out, because training asked the same


def read_held_out(
    model: LanguageModel,
    folder: str | os.PathLike[str],
    trained_on: str | os.PathLike[str] | None = None,
) -> HeldOut:
    """Reads a folder of conversations with targets, without those that ask what training asked.

    Raises:
      InputError: if either folder is damaged, another model scored them, or nothing is left.
    """
    asked = set()
    if trained_on is not None:
        training = ShardSet.read(trained_on, conversation.SHARDS)
        for index in training.units:
            asked |= {c.messages[0]["content"] for c in load_conversations(training, index)}
    conversations = ShardSet.read(folder, conversation.SHARDS)
    targets = ShardSet.read(folder, targets_file.SHARDS)
    difference = first_difference(targets.inputs.get("model"), model.fingerprint, "model")
    if difference:
        raise InputError(f"the targets in {folder} were scored by another model: {difference}")
    found = HeldOut([], [], 0)
    seen = 0
    for index in sorted(targets.units):
        told, records = load_conversations(conversations, index), targets.records(index)
        if len(told) != len(records):
            raise InputError(
                f"{folder}: unit {index} has {len(told)} conversations, {len(records)} targets; "
                "remove targets.manifest.jsonl to score them again"
            )
        for one, record in zip(told, records, strict=True):
            if one.messages[0]["content"] in asked:
                seen += 1
            else:
                found.conversations.append(one)
                found.records.append(record)
    if not found.records:
        raise InputError(f"all {seen} conversations in {folder} ask what training asked too")
    return dataclasses.replace(found, num_seen=seen)
