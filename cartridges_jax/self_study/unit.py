"""One unit of self-study: a chunk, a family of requests, and the conversations about it.

Bot A reads the chunk and writes a request for each seed prompt; bot B reads the same chunk and
answers, never seeing the seed. A unit depends on (settings, corpus, model, index) alone.
"""

import dataclasses
import random
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

from cartridges_jax.corpus import Chunk, Document, draw_chunk
from cartridges_jax.corpus.chunkers import SENTENCE_END
from cartridges_jax.corpus.tokens import CorpusTokens
from cartridges_jax.engine.answers import ids_of
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.models.template_text import split_thoughts
from cartridges_jax.self_study import seeds
from cartridges_jax.self_study.clients.base import Client, Reply
from cartridges_jax.self_study.config import SynthesisConfig
from cartridges_jax.self_study.conversation import Conversation
from cartridges_jax.self_study.selection import Selection

# Neither the number of a list's item nor "Certainly!" is a sentence of an answer.
_ANSWER_END = re.compile(rf"(?<!^\d)(?<!^\d\d)(?![!\uff01]){SENTENCE_END}", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class ChunkDrawer:
    """Draws chunks from the corpus, documents in proportion to their length."""

    documents: Sequence[Document]
    tokens: CorpusTokens
    model: LanguageModel
    widths: tuple[int, int]  # the shortest and the longest to draw, tokens

    @classmethod
    def of(
        cls,
        documents: Sequence[Document],
        model: LanguageModel,
        widths: tuple[int, int],
        folder: epath.Path,
    ) -> "ChunkDrawer":
        """Encodes the documents, to a file in `folder` that later runs find there."""
        tokenizer = model.tokenizer
        tokens = CorpusTokens.of(documents, tokenizer, tokenizer.fingerprint, folder)
        return cls(documents, tokens, model, widths)

    def chunk(self, rng: random.Random) -> Chunk:
        """Draws a chunk; the cost depends on its width alone."""
        index = rng.choices(range(len(self.documents)), cum_weights=self.tokens.cumulated)[0]
        document, tokens = self.documents[index], self.tokens.document(index)
        return draw_chunk(
            rng, self.model.tokenizer, document.name, document.title, tokens, *self.widths
        )


def chunk_widths(
    model: LanguageModel, documents: Sequence[Document], config: SynthesisConfig
) -> tuple[int, int]:
    """The shortest and the longest width to draw, tokens.

    Raises:
      InputError: if the longest does not fit the window beside what either bot reads and writes.
    """
    title = max(len(model.template.render_context(d.title, "")) for d in documents)
    of_a = max(_longest_seed(model, family, config) for family in seeds.FAMILIES)
    of_b = len(model.render_prompt("", has_context=True)) + config.answer_max_tokens
    return fitting_widths(model, config, title + max(of_a, of_b) + config.question_max_tokens)


def fitting_widths(model: LanguageModel, config: Any, beside: int) -> tuple[int, int]:
    """The widths to draw where `beside` tokens of the window are taken; InputError as above."""
    left = model.config.window - beside
    longest = config.chunk_max_tokens or left
    if longest > left or left < 1:
        raise InputError(
            f"beside a chunk of {config.chunk_max_tokens or 'any'} tokens, title, question and "
            f"answer need {beside}, and the model's window is {model.config.window}; lower "
            "chunk_max_tokens, question_max_tokens or answer_max_tokens"
        )
    shortest = config.chunk_min_tokens or longest
    if shortest > longest:
        raise InputError(f"chunk_min_tokens={shortest} exceeds chunk_max_tokens={longest}")
    return shortest, longest


def _longest_seed(model: LanguageModel, family: str, config: SynthesisConfig) -> int:
    """Tokens of the longest message to bot A, with its examples; a passage is counted in bytes."""
    opening = seeds.examples(family, config.num_examples)
    asked = [
        [*opening, Message(role="user", content=seeds.seed_prompt(seed, None))]
        for seed in seeds.SEEDS[family]
    ]
    longest = max(len(model.render_prompt(turns, has_context=True)) for turns in asked)
    between = 3  # line breaks
    shown = seeds.LONGEST_PASSAGE + seeds.LONGEST_HEAD + between if config.passages else 0
    return longest + shown


def study_unit(
    index: int, drawer: ChunkDrawer, client: Client, config: SynthesisConfig
) -> list[Conversation]:
    """Writes the conversations of unit `index`."""
    rng = random.Random(f"unit {config.seed} {index}")
    chunk = drawer.chunk(rng)
    family = seeds.family_of_unit(index, config.question_share)
    opening = seeds.examples(family, config.num_examples)
    prompts = seeds.draw_seed_prompts(
        rng,
        family,
        config.conversations_per_chunk,
        chunk.text if config.passages else None,
        config.num_examples,
    )
    asking = client.read(chunk, opening)  # kept until the chunk is read for bot B, who shares it
    written = asking.complete(
        [[Message(role="user", content=prompt)] for prompt in prompts],
        temperature=config.question_temperature,
        max_new_tokens=config.question_max_tokens,
        seeds=[rng.randrange(2**31) for _ in prompts],
    )
    shown = seeds.EXAMPLE_PASSAGES[: config.num_examples]
    selection = Selection.of(chunk, seeds.SEED_WORDS, shown)
    asked: dict[str, str] = {}  # by request: none is asked twice
    for prompt, reply in zip(prompts, written, strict=True):
        if reply is None or not reply.finished:
            continue
        request = split_thoughts(reply.text, client.opens_thoughts)[1].strip()
        if request and selection.why_not(request) is None:
            asked.setdefault(request, prompt)
    if not asked:
        return []
    most, opened = config.answer_max_sentences, client.opens_thoughts
    answers = client.read(chunk).complete(
        [[Message(role="user", content=request)] for request in asked],
        temperature=config.answer_temperature,
        max_new_tokens=config.answer_max_tokens,
        seeds=[rng.randrange(2**31) for _ in asked],
        enough=(lambda text: first_sentences(text, most, opened)[1]) if most else None,
    )
    found = []
    for (request, prompt), answer in zip(asked.items(), answers, strict=True):
        if answer is None:
            continue
        text, is_cut = first_sentences(answer.text, most, opened)
        if not (answer.finished or is_cut or config.keep_unfinished):
            continue
        turn = _answer_turn(drawer.model, answer, text)
        if turn is not None and answer.confidence >= config.min_answer_confidence:
            turns = (Message(role="user", content=request), turn)
            found.append(Conversation(f"{index}-{len(found)}", chunk, family, prompt, turns))
    return found


def _answer_turn(model: LanguageModel, answer: Reply, text: str) -> Message | None:
    """An answer's kept text as a turn, with its tokens if they end where the text ends.

    None if there is no text, a template that renders it otherwise needs the tokens, or the answer
    goes on into a turn of somebody else.
    """
    ids = answer.token_ids and ids_of(model.tokenizer, answer.token_ids, text)
    if not text.strip() or (ids is None and model.template.opens_thoughts):
        return None
    if ids is not None and not model.template.turn_ids.isdisjoint(ids):
        return None
    if ids is None:
        return Message(role="assistant", content=text)
    return Message(role="assistant", content=text, token_ids=ids)


def first_sentences(text: str, count: int, opened: bool = False) -> tuple[str, bool]:
    """A text cut behind its first `count` sentences (0: all), and whether anything was cut off.

    A number of a list's item and an exclamation end none; an abbreviation does. Thoughts are kept
    and their sentences not counted; `opened` if the text begins inside of them.
    """
    thoughts, said = split_thoughts(text, opened)
    ends = [match.end() for match in _ANSWER_END.finditer(said)]
    if not 0 < count <= len(ends):
        return text, False
    cut = thoughts + said[: ends[count - 1]]
    return cut, len(cut) < len(text.rstrip())
