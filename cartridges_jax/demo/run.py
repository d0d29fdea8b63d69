"""A document goes in, a cartridge and a report come out.

Without a corpus it is the package's own document, the handbook of a ferry line that does not exist
(no model has read it), with 60 questions. With questions whose answers are known accuracy is
measured, without them closeness to in-context reading. Every stage is resumable, so the whole is.
"""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from etils import epath

from cartridges_jax import distributed, files, presets
from cartridges_jax.beginnings import Beginning
from cartridges_jax.config import check_ranges, setting
from cartridges_jax.corpus import Document, read_corpus
from cartridges_jax.distillation.config import MAX_SEED, TrainConfig
from cartridges_jax.distillation.job import cartridge_path
from cartridges_jax.distillation.targets import score_targets
from cartridges_jax.distillation.train import train
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation import report
from cartridges_jax.evaluation.arms import CARTRIDGE, FULL_CONTEXT
from cartridges_jax.evaluation.questions import load_questions
from cartridges_jax.evaluation.run import EvaluateConfig, evaluate
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import read_metrics
from cartridges_jax.self_study.config import SynthesisConfig
from cartridges_jax.self_study.run import synthesize
from cartridges_jax.sharding import DATA

DOCUMENT = epath.Path(__file__).parent / "document.md"
QUESTIONS = epath.Path(__file__).parent / "questions.jsonl"
FEWEST_SLOTS = 4
ANSWER_TOKENS = 48
HELD_OUT = 64  # conversations, where there are no questions
NO_ANSWERS = (
    "Nobody knows the right answers for this text. The figures say how closely the cartridge "
    "follows what the same model does with the text in its context, not that its answers are right."
)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo."""

    preset: str = setting(
        "laptop",
        "Values by model size for self-study and training, but for the sizes that are flags here.",
    )
    corpus: str = setting("", "Text file or folder; empty for the package's own document.")
    questions: str = setting(
        "", "JSON Lines of {question, answers} about it; empty: held-out conversations instead."
    )
    num_slots: int = setting(176, "Slots of the cartridge.", above=0)
    num_conversations: int = setting(  # six units of 64, of each of which a few are dropped
        360, "Conversations of self-study.", above=0
    )
    num_steps: int = setting(200, "Optimizer steps.", above=0)
    throughput_batch: int = setting(
        4, "Requests that decode together when speed is measured; 0: it is not.", at_least=0
    )
    seed: int = setting(0, "Seed of everything.", at_least=0, at_most=MAX_SEED)


def run_demo(
    model: LanguageModel,
    out: str | os.PathLike[str],
    config: DemoConfig | None = None,
    trainer: LanguageModel | None = None,
) -> dict[str, Any]:
    """Runs all stages into `out` and prints the table; run again, it goes on where it was.

    Args:
      model: studies, answers, and is what is distilled.
      out: folder for everything.
      config: settings.
      trainer: the same model on the devices of all processes, where there are several; the
        cartridge is trained on it. None for `model`.

    Returns:
      The results of the evaluation, of the first process alone; the cartridge lies where
      `demo_cartridge` says.

    Raises:
      InputError: on settings or a corpus that cannot work.
    """
    config = config or DemoConfig()
    check_ranges(config)
    folder = files.output_folder(out)
    corpus = read_corpus(config.corpus or DOCUMENT)
    documents = corpus.documents
    if distributed.is_primary():
        print(*corpus.lines(), sep="\n")
    asked = config.questions or ("" if config.corpus else os.fspath(QUESTIONS))
    questions = load_questions(asked) if asked else []
    _check_slots(model, documents, config)
    if distributed.is_primary():
        _explain(model, documents, config)
    trainer = trainer or model

    shared = {"seed": config.seed}
    study = presets.preset(
        SynthesisConfig, config.preset, num_conversations=config.num_conversations, **shared
    )
    if model.config.window < 2 * study.chunk_max_tokens:  # chunks as wide as a small window takes
        study = dataclasses.replace(study, chunk_min_tokens=0, chunk_max_tokens=0)
    synthesize(model, documents, folder / "data", study)
    held_out = None
    if not questions:
        other = {"num_conversations": HELD_OUT, "seed": config.seed + 1}
        synthesize(model, documents, folder / "held_out", dataclasses.replace(study, **other))
        score_targets(model, folder / "held_out")
        held_out = folder / "held_out"

    name = f"p{config.num_slots}"
    settings = presets.preset(
        TrainConfig,
        config.preset,
        num_slots=config.num_slots,
        num_steps=config.num_steps,
        rows_per_step=trainer.mesh.shape[DATA],
        **shared,
    )
    score_targets(model, folder / "data")
    cartridge = train(trainer, documents, folder / "data", folder / name, settings)
    if not distributed.is_primary():
        distributed.barrier("evaluated")
        return {}
    results = evaluate(
        model,
        cartridge,
        documents,
        folder / name,
        questions,
        held_out,
        EvaluateConfig(answer_max_tokens=ANSWER_TOKENS, throughput_batch=config.throughput_batch),
        trained_on=folder / "data",
    )
    curve = report.training_plot({name: read_metrics(folder / name / "metrics.jsonl")})
    report.write_report(
        folder / "report.html",
        results,
        title="From a document to a cartridge",
        notes=[] if questions else [NO_ANSWERS],
        extra_plots=[("Loss: KL to the in-context teacher while training", curve)],
    )
    print(report.summary_table(results))
    print(_side_by_side(results))
    if not questions:
        print(NO_ANSWERS + "\n")
    print(f"Report:    {folder / 'report.html'}")
    distributed.barrier("evaluated")
    return results


def demo_cartridge(out: str | os.PathLike[str], config: DemoConfig) -> epath.Path:
    """Where the demo puts its cartridge."""
    return cartridge_path(files.local_path(out) / f"p{config.num_slots}")


def _check_slots(model: LanguageModel, documents: Sequence[Document], config: DemoConfig) -> None:
    context = Beginning.of(model, documents, model.config.window).corpus_tokens
    if config.num_slots > context:
        raise InputError(
            f"the corpus has {context} tokens as a context, fewer than num_slots="
            f"{config.num_slots}; a cartridge is meant to be smaller than its text"
        )
    row = presets.values_for(TrainConfig, config.preset)["row_length"]  # a row is behind it
    most = min(context, model.config.window - row)
    if not FEWEST_SLOTS <= config.num_slots <= most:
        raise InputError(
            f"num_slots must be from {FEWEST_SLOTS} to {most}, which a text of {context} tokens "
            f"and a window of {model.config.window} leave, got {config.num_slots}"
        )


def _explain(model: LanguageModel, documents: Sequence[Document], config: DemoConfig) -> None:
    read = Beginning.of(model, documents, model.config.window)
    tokens = read.corpus_tokens
    title = documents[0].title if len(documents) == 1 else f"{len(documents)} documents"
    print(f"Corpus:    {title}, {read.told_size()} as a context")
    print(
        f"Model:     {model.name}, {model.config.num_params() / 1e6:.0f} M parameters, window of "
        f"{model.config.window} tokens"
    )
    print(f"Cartridge: {config.num_slots} slots, {tokens / config.num_slots:.1f} times smaller\n")


def _side_by_side(results: dict[str, Any], count: int = 6) -> str:
    rows = report.examples(results) or results.get("samples", [])
    lines = []
    for row in rows[:count]:
        lines.append(f"\nQ: {row['question']}")
        for arm in (FULL_CONTEXT, CARTRIDGE):
            text = " / ".join(row["given"][arm]["text"].splitlines())
            lines.append(f"   {arm:<13} {textwrap.shorten(text, 100, placeholder=' ...')}")
    return "\n".join(lines) + "\n"
