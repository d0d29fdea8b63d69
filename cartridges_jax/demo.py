"""The main job in one command: a document goes in, a cartridge and a report come out.

With questions whose answers are known it measures accuracy, without them closeness to in-context
reading. Every stage is resumable, so the whole is.
"""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

from etils import epath

from cartridges_jax import files
from cartridges_jax.config import check_ranges, setting
from cartridges_jax.corpus import Document, load_documents
from cartridges_jax.distillation.targets import score_targets
from cartridges_jax.distillation.train import MAX_SEED, TrainConfig, cartridge_path, train
from cartridges_jax.errors import InputError
from cartridges_jax.evaluation import report
from cartridges_jax.evaluation.arms import CARTRIDGE, FULL_CONTEXT, TRUNCATED
from cartridges_jax.evaluation.evaluate import EvaluateConfig, evaluate
from cartridges_jax.evaluation.questions import load_questions
from cartridges_jax.initializers import corpus_text
from cartridges_jax.language_model import LanguageModel
from cartridges_jax.metrics import read_metrics
from cartridges_jax.self_study.synthesize import SynthesisConfig, synthesize
from cartridges_jax.sharding import DATA

FEWEST_SLOTS = 4
NO_ANSWERS = (
    "Nobody knows the right answers for this text. The figures say how closely the cartridge "
    "follows what the same model does with the text in its context, not that its answers are right."
)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo."""

    corpus: str = setting("", "Text file or folder to make a cartridge of.")
    questions: str = setting(
        "", "JSON Lines of {question, answers} about it; empty: held-out conversations instead."
    )
    num_slots: int = setting(64, "Slots of the cartridge that the table is about.", above=0)
    num_conversations: int = setting(1024, "Conversations of self-study.", above=0)
    num_steps: int = setting(250, "Optimizer steps for each size.", above=0)
    sizes: Literal["three", "one"] = setting(
        "three", "three: also half and double of num_slots, for the plot over sizes."
    )
    seed: int = setting(0, "Seed of everything.", at_least=0, at_most=MAX_SEED)


def run_demo(
    model: LanguageModel, out: str | os.PathLike[str], config: DemoConfig | None = None
) -> dict[str, Any]:
    """Runs all stages into `out` and prints the table; run again, it goes on where it was.

    Returns:
      The results of the cartridge of `num_slots`.

    Raises:
      InputError: on settings or a corpus that cannot work.
    """
    config = config or DemoConfig()
    check_ranges(config)
    folder = files.output_folder(out)
    documents = load_documents(config.corpus)
    test = load_questions(config.questions) if config.questions else []
    sizes = _sizes(model, documents, config)
    _explain(model, documents, sizes)

    study = dataclasses.replace(
        SynthesisConfig(),
        num_conversations=config.num_conversations,
        seed=config.seed,
    )
    synthesize(model, documents, folder / "data", study)  # refuses a folder of another corpus
    score_targets(model, folder / "data")
    held_out = None
    if not test:
        unseen = dataclasses.replace(study, num_conversations=128, seed=study.seed + 1)
        synthesize(model, documents, folder / "held_out", unseen)
        score_targets(model, folder / "held_out")
        held_out = folder / "held_out"

    by_size: dict[int, dict[str, Any]] = {}
    curves, last = {}, None
    for size in sizes:
        run = folder / f"p{size}"
        settings = TrainConfig(
            num_slots=size,
            num_steps=config.num_steps,
            rows_per_step=model.mesh.shape[DATA],
            seed=config.seed,
        )
        print(f"\nCartridge of {size} slots")
        cartridge = train(model, documents, folder / "data", run, settings)
        speed = 16 if size == config.num_slots else 0
        by_size[size] = last = evaluate(
            model,
            cartridge,
            documents,
            run,
            test,
            held_out,
            EvaluateConfig(throughput_batch=speed),
            trained_on=folder / "data",
            earlier=last,
        )
        curves[f"{size} slots"] = read_metrics(run / "metrics.jsonl")

    results = by_size[config.num_slots]
    note = "" if test else NO_ANSWERS
    _write_report(folder / "report.html", results, by_size, curves, note)
    print(report.summary_table(results))
    print(_side_by_side(results))
    if note:
        print(note + "\n")
    path = cartridge_path(folder / f"p{config.num_slots}")
    print(f"Report:    {folder / 'report.html'}")
    print(f"Ask it:    cartridges chat --model={model.name} --cartridge={path}")
    return results


def _sizes(model: LanguageModel, documents: Sequence[Document], config: DemoConfig) -> list[int]:
    context = len(model.template.render_context(*corpus_text(documents)))
    if config.num_slots > context:
        raise InputError(
            f"the corpus has {context} tokens as a context, fewer than num_slots="
            f"{config.num_slots}; a cartridge is meant to be smaller than its text"
        )
    most = min(context, model.config.window - TrainConfig.row_length)  # a row is behind it
    if not FEWEST_SLOTS <= config.num_slots <= most:
        raise InputError(
            f"num_slots must be from {FEWEST_SLOTS} to {most}, which a text of {context} tokens "
            f"and a window of {model.config.window} leave, got {config.num_slots}"
        )
    others = [] if config.sizes == "one" else [config.num_slots // 2, config.num_slots * 2]
    return sorted([config.num_slots, *(n for n in others if FEWEST_SLOTS <= n <= most)])


def _explain(model: LanguageModel, documents: Sequence[Document], sizes: Sequence[int]) -> None:
    tokens = len(model.template.render_context(*corpus_text(documents)))
    title = documents[0].title if len(documents) == 1 else f"{len(documents)} documents"
    print(f"Corpus:    {title}, {tokens} tokens as a context")
    print(f"Model:     {model.name}, {model.config.num_params() / 1e6:.1f} M parameters, window of "
          f"{model.config.window} tokens")  # fmt: skip
    print(f"Sizes:     {', '.join(map(str, sizes))} slots\n")


def _side_by_side(results: dict[str, Any], count: int = 4) -> str:
    rows = report.examples(results) or results.get("samples", [])
    lines = []
    for row in rows[:count]:
        lines.append(f"\nQ: {row['question']}")
        for arm in (FULL_CONTEXT, CARTRIDGE):
            text = " / ".join(row["given"][arm]["text"].splitlines())
            lines.append(f"   {arm:<13} {textwrap.shorten(text, 100, placeholder=' ...')}")
    return "\n".join(lines) + "\n"


def _write_report(
    path: epath.Path,
    results: dict[str, Any],
    by_size: dict[int, dict[str, Any]],
    curves: dict[str, list[dict[str, Any]]],
    note: str,
) -> None:
    plots = [("Loss: KL to the in-context teacher while training", report.training_plot(curves))]
    if any("score" in row for rows in curves.values() for row in rows):
        plots.append(("Accuracy while training", report.score_plot(curves)))
    if "accuracy" in results and len(by_size) > 1:
        points = [
            {
                "name": arm,
                "kv_bytes": r["arms"][arm]["kv_bytes"],
                "accuracy": r["accuracy"][arm]["all"],
            }
            for r in by_size.values()
            for arm in (CARTRIDGE, TRUNCATED)
        ]
        points.append(
            {
                "name": FULL_CONTEXT,
                "kv_bytes": results["arms"][FULL_CONTEXT]["kv_bytes"],
                "accuracy": results["accuracy"][FULL_CONTEXT]["all"],
            }
        )
        plots.append(("Accuracy against memory", report.size_plot(points)))
    notes = [note] if note else []
    report.write_report(
        path, results, title="From a document to a cartridge", notes=notes, extra_plots=plots
    )
