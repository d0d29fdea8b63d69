"""A conversation about a chunk, and how it is stored: one JSON object per record."""

import dataclasses
import json

from cartridges_jax.corpus import Chunk
from cartridges_jax.models.chat_template import Message

SHARDS = "conversations"


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages that followed a chunk. `id` is unique in its data set: unit and place in it."""

    id: str
    chunk: Chunk
    family: str
    seed_prompt: str
    messages: tuple[Message, ...]

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Conversation":
        fields = json.loads(data)
        fields["chunk"] = Chunk(**fields["chunk"])
        fields["messages"] = tuple(Message(**message) for message in fields["messages"])
        return cls(**fields)
