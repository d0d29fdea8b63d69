"""Self-study of the small model, with the prompts it was trained on (`prompts.py`).

As the package's (`self_study/`), but for what the small model can do: bot A may skim the chunk, may
be shown a sentence, or is not asked at all where a sentence is wanted word for word; what either
bot is unsure of can be dropped, and of the rest a share is kept, rather those with much in their
answers that only the text can have given.
"""

import dataclasses
import functools
import os
import random
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from cartridges_jax import files
from cartridges_jax.config import check_ranges, digest, setting
from cartridges_jax.corpus import Chunk, Document
from cartridges_jax.errors import InputError
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.models.chat_template import Message
from cartridges_jax.models.template_text import split_thoughts
from cartridges_jax.self_study.clients.base import ChunkReader, Client, Reply
from cartridges_jax.self_study.clients.local import LocalClient
from cartridges_jax.self_study.conversation import SHARDS, Conversation
from cartridges_jax.self_study.run import study_inputs, write_units
from cartridges_jax.self_study.unit import ChunkDrawer, fitting_widths
from cartridges_jax.shards import ShardSet
from experiments.embedded_world.prompts import (
    LONGEST_HEAD,
    PROMPTS,
    QUESTION,
    RECALL,
    RECALL_PROMPTS,
    SEED_PROMPTS,
    SKIMMED,
    all_focuses,
    draw_recall,
    draw_seed_prompts,
    skim,
)

MOST_SKIMMED = 3  # sentences that bot A sees of a chunk that it skims


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings of self-study. The paper uses 65,536 conversations, temperature 0.6 and chunks of
    512 to 4096 tokens (arXiv 2506.06266).
    """

    num_conversations: int = setting(1024, "Conversations to write, in all.", above=0)
    conversations_per_chunk: int = setting(
        16, "Conversations that share one chunk, one unit.", above=0
    )
    chunk_min_tokens: int = setting(
        128,
        "Shortest width that is drawn, tokens; a chunk at an edge is cut shorter. 0: the longest.",
        at_least=0,
    )
    chunk_max_tokens: int = setting(
        1024,
        "Longest width that is drawn, tokens; a shorter document is shown whole. 0: all that the "
        "model's window leaves beside question and answer.",
        at_least=0,
    )
    question_temperature: float = setting(
        0.6, "Sampling temperature of bot A, who asks.", at_least=0
    )
    answer_temperature: float = setting(
        0.0, "Sampling temperature of bot B; 0 is greedy.", at_least=0
    )
    question_max_tokens: int = setting(
        64, "Longest first message, tokens; longer ones are dropped.", above=0
    )
    answer_max_tokens: int = setting(
        96, "Longest answer, tokens; longer ones are dropped.", above=0
    )
    seed_prompts: Literal["general", "focused"] = setting(
        "general",
        "What bot A is told: general, the paper's kind; focused, with a sentence of the chunk to "
        "ask about, so that questions cover the text evenly.",
    )
    question_share: float = setting(
        0.2,
        "Share of the seed prompts that ask for a question, 0 to 1; the other four families are "
        "equal.",
        at_least=0,
        at_most=1,
    )
    min_question_confidence: float = setting(
        0.0,
        "Drop a question if the geometric mean of its tokens' probabilities is below this, 0 to 1.",
        at_least=0,
        at_most=1,
    )
    min_answer_confidence: float = setting(
        0.0,
        "Drop a conversation if the geometric mean of the probabilities of its answer's tokens is "
        "below this, 0 to 1.",
        at_least=0,
        at_most=1,
    )
    kept_share: float = setting(
        1.0,
        "Share of a chunk's conversations that are kept, at most, above 0 to 1; one may always "
        "be. They are drawn with weights: the words of the answer that are neither in the "
        "question nor in the answer to it from the title alone. Without any, a conversation "
        "teaches nothing and is dropped, and so is a chunk's question asked again. Of the "
        "questions by a bot A that has only skimmed the chunk (skimmed_share) the same share is "
        "kept, those with the fewest such words; of the sentences asked for (recall_share) any. "
        "1: all are kept, and the title alone is not asked.",
        above=0,
        at_most=1,
    )
    skimmed_share: float = setting(
        0.0,
        "Share of a chunk's conversations, 0 to 1, for which bot A has skimmed the chunk: it sees "
        f"the title and {MOST_SKIMMED} sentences at most. Much of what it then asks is not in the "
        "text, and without such questions a cartridge forgets to say so. Bot A's confidence does "
        "not count here.",
        at_least=0,
        at_most=1,
    )
    recall_share: float = setting(
        0.0,
        "Share of a chunk's conversations, 0 to 1, that ask for a sentence of it by its first "
        "words, without bot A; an answer that does not hold the sentence word for word is dropped. "
        "Little of what a text says is ever asked for literally, and what is not stays unlearned.",
        at_least=0,
        at_most=1,
    )
    seed: int = setting(0, "Seed of chunks, prompts and sampling.", at_least=0)

    @property
    def most_per_chunk(self) -> int:
        """Conversations that a chunk leaves, at most."""
        return max(1, round(self.kept_share * self.conversations_per_chunk))

    @property
    def skimmed_per_chunk(self) -> int:
        """Questions by who has skimmed the chunk."""
        return round(self.skimmed_share * self.conversations_per_chunk)

    @property
    def recall_per_chunk(self) -> int:
        """Sentences of the chunk that are asked for."""
        others = self.conversations_per_chunk - self.skimmed_per_chunk
        return min(round(self.recall_share * self.conversations_per_chunk), others)

    @property
    def skimmed_kept(self) -> int:
        """Most that are kept of the questions by who has skimmed the chunk."""
        return round(self.kept_share * self.skimmed_per_chunk)

    @property
    def recalled_kept(self) -> int:
        """Most that are kept of the sentences that are asked for."""
        return round(self.kept_share * self.recall_per_chunk)


def synthesize(
    model: LanguageModel,
    documents: Sequence[Document],
    out: str | os.PathLike[str],
    config: StudyConfig | None = None,
    client: Client | None = None,
) -> ShardSet:
    """Writes conversations about the documents to `out`; goes on if begun before.

    Args:
      model: draws the chunks (its tokenizer counts tokens) and plays both bots.
      documents: the corpus.
      out: folder of the shards.
      config: settings.
      client: plays the bots instead of `model`.

    Returns:
      The finished shards.

    Raises:
      InputError: on settings or a corpus that cannot work, or a folder begun with others.
    """
    config = config or StudyConfig()
    check_ranges(config)
    _check_shares(config)
    if not documents:
        raise InputError("there is no document to study")
    client = client or LocalClient(model)
    inputs = study_inputs(config, client, documents) | {
        "prompts": digest(  # the last says how a sentence is shown
            [PROMPTS[config.seed_prompts], SEED_PROMPTS[QUESTION], RECALL_PROMPTS, LONGEST_HEAD]
        ),
    }
    shards = ShardSet.open(files.output_folder(out), SHARDS, inputs)
    widths = _chunk_widths(model, documents, config)
    drawer = ChunkDrawer.of(documents, model, widths, shards.folder)
    whole = "\n".join(d.text for d in documents)
    study = functools.partial(_study_unit, drawer=drawer, whole=whole, client=client, config=config)
    per_unit = config.conversations_per_chunk
    return write_units(shards, study, config.num_conversations, per_unit)


def _check_shares(config: StudyConfig) -> None:
    """Raises InputError where a share is asked for that a chunk's few conversations cannot give."""
    if config.skimmed_share + config.recall_share > 1:
        raise InputError(f"{config.skimmed_share=} and {config.recall_share=} exceed 1 together")
    asked = {"skimmed_share": config.skimmed_kept, "recall_share": config.recalled_kept}
    for name, kept in asked.items():
        if getattr(config, name) and not kept:
            raise InputError(
                f"{name}={getattr(config, name)} with kept_share={config.kept_share} keeps none of "
                f"{config.conversations_per_chunk} conversations a chunk; raise one of the three, "
                f"or set {name}=0"
            )


def _chunk_widths(
    model: LanguageModel, documents: Sequence[Document], config: StudyConfig
) -> tuple[int, int]:
    """The shortest and the longest width to draw, tokens.

    Raises:
      InputError: if the longest does not fit the window beside what either bot reads and writes.
    """
    title = max(len(model.template.render_context(d.title, "")) for d in documents)
    of_a = _longest_seed(model, documents, config)
    of_b = len(model.render_prompt("", has_context=True)) + config.answer_max_tokens
    return fitting_widths(model, config, title + max(of_a, of_b) + config.question_max_tokens)


def _longest_seed(model: LanguageModel, documents: Sequence[Document], config: StudyConfig) -> int:
    """Tokens of the longest message to bot A."""
    prompts = [prompt for family in PROMPTS[config.seed_prompts].values() for prompt in family]
    longest = max(len(model.render_prompt(prompt, has_context=True)) for prompt in prompts)
    if config.seed_prompts == "general":
        return longest
    focuses = (focus for d in documents for focus in all_focuses(d.text))
    return longest + max(len(model.tokenizer.encode(f"\n\n{focus}")) for focus in focuses)


class _Asked(NamedTuple):
    family: str
    seed_prompt: str  # of RECALL the sentence that is asked for
    question: str


class _Told(NamedTuple):
    family: str
    seed_prompt: str
    question: str
    answer: str


def _study_unit(
    index: int, drawer: ChunkDrawer, whole: str, client: Client, config: StudyConfig
) -> list[Conversation]:
    rng = random.Random(f"unit {config.seed} {index}")
    chunk = drawer.chunk(rng)
    reader = client.read(chunk)
    asked = _ask(chunk, reader, client, rng, config)
    if config.recall_per_chunk:
        sentences = draw_recall(rng, chunk.text, config.recall_per_chunk, whole)
        asked += [_Asked(RECALL, sentence, message) for message, sentence in sentences]
    answers = _answers(reader, [one.question for one in asked], rng, config)
    told = [
        _Told(*one, answer.text)
        for one, answer in zip(asked, answers, strict=True)
        if answer and answer.text.strip() and answer.confidence >= config.min_answer_confidence
        if one.family != RECALL or _holds(answer.text, one.seed_prompt)
    ]
    if config.kept_share < 1:
        title_alone = client.read(dataclasses.replace(chunk, text=""))
        recalled = [one for one in told if one.family == RECALL]
        told = [one for one in told if one.family != RECALL]
        alone = _answers(title_alone, [one.question for one in told], rng, config)
        told = _keep(rng, told, [reply.text if reply else "" for reply in alone], config)
        told += recalled[: config.recalled_kept]
    return [
        Conversation(f"{index}-{i}", chunk, family, prompt, (
            Message(role="user", content=question),
            Message(role="assistant", content=answer),
        ))
        for i, (family, prompt, question, answer) in enumerate(told)
    ]  # fmt: skip


def _ask(
    chunk: Chunk, reader: ChunkReader, client: Client, rng: random.Random, config: StudyConfig
) -> list[_Asked]:
    """Bot A's questions, by who has read the chunk and by who has skimmed it."""
    seeds = draw_seed_prompts(
        rng,
        config.conversations_per_chunk - config.skimmed_per_chunk - config.recall_per_chunk,
        config.question_share,
        chunk.text if config.seed_prompts == "focused" else None,
    )
    asked = _questions(reader, seeds, rng, config)
    if config.skimmed_per_chunk:
        skimmed = skim(rng, chunk.text, rng.randrange(MOST_SKIMMED + 1))
        prompts = rng.choices(SEED_PROMPTS[QUESTION], k=config.skimmed_per_chunk)
        skimmer = client.read(dataclasses.replace(chunk, text=skimmed))
        asked += _questions(skimmer, [(SKIMMED, prompt) for prompt in prompts], rng, config)
    return asked


def _holds(answer: str, sentence: str) -> bool:
    """Whether an answer has a sentence word for word."""
    told, wanted = (" ".join(re.findall(r"\w+", text)) for text in (answer, sentence))
    return f" {wanted} " in f" {told} "


def _keep(
    rng: random.Random, told: Sequence[_Told], alone: Sequence[str], config: StudyConfig
) -> list[_Told]:
    """Draws what is kept beside recall, up to `config.most_per_chunk` in all; see `kept_share`.

    `alone` are the answers to the same questions from the title alone.
    """
    draws: dict[str, tuple[int, float, _Told]] = {}  # by question, in the order drawn
    for one, other in zip(told, alone, strict=True):
        news = len(_words(one.answer) - _words(one.question) - _words(other))
        draws.setdefault(one.question, (news, rng.random(), one))
    skimmed = sorted(draw for draw in draws.values() if draw[2].family == SKIMMED)
    kept = skimmed[: config.skimmed_kept]
    # The largest u ** (1 / weight) are a weighted draw without replacement (Efraimidis and
    # Spirakis, 2006).
    read = [(u ** (1 / news), one) for news, u, one in draws.values() if news]
    read = [draw for draw in read if draw[1].family != SKIMMED]
    most = max(0, config.most_per_chunk - config.recalled_kept - len(kept))
    return [one for _, one in sorted(read, reverse=True)[:most]] + [one for *_, one in kept]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _questions(
    reader: ChunkReader,
    seeds: Sequence[tuple[str, str]],
    rng: random.Random,
    config: StudyConfig,
) -> list[_Asked]:
    """What bot A writes for each (family, prompt), where it is sure enough.

    Who has skimmed cannot be sure.
    """
    if not seeds:
        return []
    replies = reader.complete(
        [[Message(role="user", content=prompt)] for _, prompt in seeds],
        temperature=config.question_temperature,
        max_new_tokens=config.question_max_tokens,
        seeds=[rng.randrange(2**31) for _ in seeds],
    )
    asked = []
    for (family, prompt), reply in zip(seeds, replies, strict=True):
        sure = family == SKIMMED or (
            reply is not None and reply.confidence >= config.min_question_confidence
        )
        if reply is not None and reply.finished and sure:
            question = split_thoughts(reply.text)[1].lstrip("\n")
            if question.strip():
                asked.append(_Asked(family, prompt, question))
    return asked


def _answers(
    reader: ChunkReader, questions: Sequence[str], rng: random.Random, config: StudyConfig
) -> list[Reply | None]:
    """What bot B answers to each; None where it did not end."""
    if not questions:
        return []
    replies = reader.complete(
        [[Message(role="user", content=question)] for question in questions],
        temperature=config.answer_temperature,
        max_new_tokens=config.answer_max_tokens,
        seeds=[rng.randrange(2**31) for _ in questions],
    )
    return [reply if reply and reply.finished else None for reply in replies]
