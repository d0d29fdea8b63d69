"""`cartridges evaluate`."""

import os
from typing import Any

from absl import flags

from cartridges_jax.commands import common
from cartridges_jax.config import define_flags, from_flags

HELP = "measure a cartridge beside its controls"


def config_class() -> Any:
    from cartridges_jax.evaluation.run import EvaluateConfig

    return EvaluateConfig


def define(values: flags.FlagValues) -> None:
    common.define_model(values)
    common.define_processes(values)
    for name, default, text in (
        ("cartridge", None, "The .cartridge file to evaluate."),
        ("corpus", None, "The text it was made of: for the controls."),
        (
            "questions",
            "",
            "JSON Lines of {question, answers}; may be left out if --held_out is given.",
        ),
        (
            "held_out",
            "",
            "Conversations that training did not see; may be left out if --questions are given.",
        ),
        (
            "data",
            "",
            "Training conversations; held-out ones that ask the same do not count.",
        ),
        ("out", None, "Folder of answers, results.json and report.html."),
    ):
        common.define_string(values, name, default, text)
    define_flags(config_class(), values)


def run(values: flags.FlagValues) -> None:
    from cartridges_jax import distributed
    from cartridges_jax.cartridge import Cartridge
    from cartridges_jax.distillation.targets import score_targets
    from cartridges_jax.evaluation.questions import load_questions
    from cartridges_jax.evaluation.report import summary_table
    from cartridges_jax.evaluation.run import evaluate

    common.join_processes(values)
    cartridge = Cartridge.load(values.cartridge)
    documents = common.load_corpus(values)
    questions = load_questions(values.questions) if values.questions else []
    model = common.load_model(values)
    if values.held_out:
        score_targets(model, values.held_out)  # by all processes; the rest is the first one's
    if not distributed.is_primary():
        distributed.barrier("evaluated")
        return
    results = evaluate(
        model, cartridge, documents, values.out, questions, values.held_out or None,
        from_flags(config_class(), values), values.data or None,
    )  # fmt: skip
    print(summary_table(results))
    print(f"report: {os.path.join(values.out, 'report.html')}")
    distributed.barrier("evaluated")
