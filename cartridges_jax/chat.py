"""A chat in the terminal: every answer streams, and follows the whole conversation so far."""

import sys
from collections.abc import Callable, Iterable

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.engine.answers import GenerationConfig
from cartridges_jax.engine.sampling import Sampling
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message


def chat(
    model: LanguageModel,
    cartridge: Cartridge,
    max_tokens: int,
    temperature: float,
    lines: Iterable[str] | None = None,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Reads questions until the input ends; `/new` forgets the conversation, `/quit` ends.

    Args:
      model: the base of the cartridge.
      cartridge: the context.
      max_tokens: longest answer.
      temperature: of sampling.
      lines: questions; None for the terminal.
      write: takes the text of the answers, piece by piece.

    Raises:
      InputError: if the cartridge belongs to another model, or no answer could be generated with
        these settings.
    """
    model.check_cartridge(cartridge)
    GenerationConfig(max_tokens, Sampling(temperature)).check()
    if cartridge.next_position + max_tokens >= model.config.window:
        raise InputError(
            f"a cartridge that ends at position {cartridge.next_position} and {max_tokens=} leave "
            f"no room for a question in the model's window of {model.config.window}; lower "
            "max_tokens"
        )
    titles = ", ".join(d["name"] for d in cartridge.provenance.get("corpus", [])[:3])
    write(f"Ask about {titles or 'the text'}. /new forgets the conversation, /quit ends.\n")
    context = model.context(cartridge)
    messages: list[Message] = []
    for turn, line in enumerate(_terminal_lines() if lines is None else lines):
        question = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
        if question == "/quit":
            break
        if question == "/new":
            messages = []
            write("(new conversation)\n")
        if question in ("", "/new"):
            continue
        messages.append(Message(role="user", content=question))
        text = ""
        try:
            for piece in model.stream(
                messages, context, max_new_tokens=max_tokens, temperature=temperature, seed=turn
            ):
                text += piece
                write(piece)
                sys.stdout.flush()
        except InputError as error:  # most often: the conversation has outgrown the window
            write(f"({error}; /new forgets the conversation)\n")
            del messages[-1]
            continue
        write("\n")
        messages.append(Message(role="assistant", content=text))


def _terminal_lines() -> Iterable[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
