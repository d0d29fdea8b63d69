"""The arms of an evaluation: a cartridge and the controls it is measured against.

Every arm is a context that the same questions follow. "Full context" puts the whole document into
each prompt; "full KV" loads the document's real KV as a cartridge and must answer alike;
"truncated" gives the text as many tokens as the cartridge has slots, cut at the end of a sentence
or line with the context's closing tokens in place; "no context" gives nothing.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from cartridges_jax import initializers
from cartridges_jax.beginnings import Beginning
from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.corpus.chunkers import SENTENCE_END
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.models.transformer import Prefix

NO_CONTEXT = "no context"
FULL_CONTEXT = "full context"
FULL_KV = "full KV"
TRUNCATED = "truncated"
CARTRIDGE = "cartridge"
_PASSAGE_END = re.compile(rf"{SENTENCE_END}|(?<=\S)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A context under test.

    `prompt_head` are token ids put before each suffix; `prefix` is KV shared by all rows. One of
    them is the context. `num_tokens` counts its slots or tokens; `note` says what a reader must
    know, such as a document that was cut.
    """

    name: str
    num_tokens: int
    prompt_head: tuple[int, ...] = ()
    prefix: Cartridge | Prefix | None = None
    note: str = ""


def truncated_context(model: LanguageModel, title: str, text: str, budget: int) -> list[int]:
    """Returns the longest context of whole sentences and lines with at most `budget` tokens.

    If not even one fits, the empty context.
    """
    ends = [match.end() for match in _PASSAGE_END.finditer(text)]
    low, high = 0, len(ends)  # the longest cut that fits lies in ends[:high]
    best = model.template.empty_context()
    while low < high:
        middle = (low + high) // 2
        context = model.template.render_context(title, text[: ends[middle]])
        if len(context) <= budget:
            best, low = context, middle + 1
        else:
            high = middle
    return best


def control_arms(
    model: LanguageModel, documents: Sequence[Document], num_slots: int, answer_room: int
) -> list[Arm]:
    """The controls of a cartridge of `num_slots` over a corpus.

    A corpus that leaves less than `answer_room` tokens of the window is cut to what fits.

    Raises:
      InputError: if `answer_room` exceeds the window.
    """
    empty = tuple(model.template.empty_context())
    note = ""
    window = model.config.window - answer_room
    if window < 1:
        raise InputError(
            f"{answer_room} tokens for question and answer leave nothing of the model's window of "
            f"{model.config.window}; lower answer_max_tokens"
        )
    read = Beginning.of(model, documents, window)
    whole = read.context
    if len(whole) > window:
        whole = truncated_context(model, read.title, read.text, window)
        if len(whole) == len(empty):  # no line ends within the window: cut anywhere
            whole = initializers.cut_context(model, read.title, read.text, window).tolist()
        note = f"the corpus has {read.told_size()}, of which {len(whole)} fit the window"
    return [
        Arm(NO_CONTEXT, len(empty), empty),
        Arm(FULL_CONTEXT, len(whole), tuple(whole), note=note),
        Arm(FULL_KV, len(whole), prefix=model.read(np.asarray(whole)), note=note),
        truncated_arm(model, documents, num_slots),
    ]


def truncated_arm(
    model: LanguageModel, documents: Sequence[Document], num_slots: int, name: str = TRUNCATED
) -> Arm:
    """As much of the corpus as a cartridge of `num_slots` has room for."""
    read = Beginning.of(model, documents, num_slots)
    cut = truncated_context(model, read.title, read.text, num_slots)
    nothing = len(cut) == len(model.template.empty_context())
    note = "no sentence or line fits: the empty context" if nothing else ""
    return Arm(name, len(cut), tuple(cut), note=note)


def cartridge_arm(cartridge: Cartridge, name: str = CARTRIDGE) -> Arm:
    """A cartridge as an arm."""
    return Arm(name, cartridge.num_slots, prefix=cartridge)


def answer_turns(
    model: LanguageModel, arm: Arm, questions: Sequence[str], max_new_tokens: int
) -> Iterator[tuple[int, Message]]:
    """Greedy answers to the questions with their indices, as they come.

    Each question is a user's message after the arm's context.
    """
    suffixes = [model.render_prompt(question, has_context=True) for question in questions]
    prompts = [[*arm.prompt_head, *suffix] for suffix in suffixes]
    found = model.generate_as_completed(prompts, arm.prefix, max_new_tokens=max_new_tokens)
    for i, generation in found:
        yield i, model.as_turn(generation)


def answer(
    model: LanguageModel, arm: Arm, questions: Sequence[str], max_new_tokens: int
) -> list[str]:
    """The texts of `answer_turns`, in order."""
    turns = dict(answer_turns(model, arm, questions, max_new_tokens))
    return [turns[i]["content"] for i in range(len(questions))]
