"""A conversation about a chunk, and how it is stored: one JSON object per record."""

import dataclasses
import json

from cartridges_jax.corpus import Chunk
from cartridges_jax.errors import InputError
from cartridges_jax.models.chat_template import Message
from cartridges_jax.shards import ShardSet

SHARDS = "conversations"


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages that followed a chunk. `id` is unique in its data set: unit and place in it."""

    id: str
    chunk: Chunk
    family: str
    seed_prompt: str
    messages: tuple[Message, ...]

    def as_text(self) -> "Conversation":
        """Without the tokens of its answers, which are of the model that wrote them."""
        bare = (Message(role=m["role"], content=m["content"]) for m in self.messages)
        return dataclasses.replace(self, messages=tuple(bare))

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Conversation":
        fields = json.loads(data)
        fields["chunk"] = Chunk(**fields["chunk"])
        fields["messages"] = tuple(Message(**message) for message in fields["messages"])
        return cls(**fields)


def load_conversations(shards: ShardSet, index: int) -> list[Conversation]:
    """Reads the conversations of one unit."""
    try:
        return [Conversation.from_bytes(record) for record in shards.records(index)]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{shards.path(index)} holds no conversations: {error!r}") from error
