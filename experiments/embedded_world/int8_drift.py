"""What weight-only int8 costs: the embedded model beside itself in float32 and in bfloat16.

    python -m experiments.embedded_world.int8_drift

Eight held-out documents: KL divergence of the next-token distributions over the documents and
their questions' answers, and accuracy on 400 questions with the document in context, paired. About
twelve minutes on two CPU cores. The result is committed in
experiments/results/embedded_world/.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cartridges_jax import LanguageModel, load_model
from cartridges_jax.evaluation.arms import Arm, answer
from cartridges_jax.evaluation.questions import Question
from cartridges_jax.models.chat_template import Message
from experiments.embedded_world.documents import (
    ANSWER_TOKENS,
    MODEL,
    embedded_questions,
    held_out_document,
)
from experiments.embedded_world.over_documents import score_documents
from experiments.record import write_result

_OUT = flags.DEFINE_string(
    "out", "experiments/results/embedded_world/int8_drift.json", "Result file."
)
_DOCUMENTS = flags.DEFINE_integer("documents", 8, "Held-out documents, 50 questions each.")

LOADINGS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": jnp.float32},
    "int8": {"dtype": jnp.float32, "quantization": "int8"},
    "bfloat16": {"dtype": jnp.bfloat16},
    "int8, bfloat16": {"dtype": jnp.bfloat16, "quantization": "int8"},
}


def log_probabilities(model: LanguageModel, token_ids: list[int]) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(model.logits(token_ids)), np.float64)


def conversation(model: LanguageModel, context: list[int], question: Question) -> list[int]:
    """A context, one of its questions and the right answer, as token ids."""
    turns = [
        Message(role="user", content=question.question),
        Message(role="assistant", content=question.answers[0]),
    ]
    return context + model.template.render_suffix(turns).token_ids.tolist()


def main(_) -> None:
    models = {name: load_model(MODEL, **how) for name, how in LOADINGS.items()}
    exact = models["float32"]
    questions: list[Question] = []
    documents: list[int] = []
    answers: dict[str, list[str]] = {name: [] for name in models}
    divergences: dict[str, list[float]] = {name: [] for name in models}
    for i in range(_DOCUMENTS.value):
        document, made = held_out_document(f"int8 {i}", 560)
        asked = embedded_questions(made, f"int8 {i}", 50)
        context = exact.template.render_context(document.title, document.text)
        for name, model in models.items():
            arm = Arm(name, len(context), tuple(context))
            answers[name] += answer(model, arm, [q.question for q in asked], ANSWER_TOKENS)
        for question in asked[::5]:
            ids = conversation(exact, context, question)
            padded = ids + ids[:1] * (-len(ids) % 32)  # few shapes to compile
            want = log_probabilities(exact, padded)[: len(ids)]
            for name, model in models.items():
                got = log_probabilities(model, padded)[: len(ids)]
                divergences[name].append(float((np.exp(want) * (want - got)).sum(-1).mean()))
        questions += asked
        documents += [i] * len(asked)
        print(f"document {i + 1} of {_DOCUMENTS.value}", flush=True)
    scores = score_documents(questions, answers, "float32", documents)
    del scores["answers"]
    kl = {name: float(np.mean(values)) for name, values in divergences.items()}
    for name in models:
        share = scores["accuracy"][name]
        d = share["difference_to_reference"]
        low, high = 100 * d["low"], 100 * d["high"]
        print(
            f"{name:<16} KL {kl[name]:.6f} nats a token, "
            f"accuracy {100 * share['all']['value']:.1f} %, "
            f"difference {100 * d['value']:+.1f} ({low:+.1f} to {high:+.1f})"
        )
    write_result(_OUT.value, {"kl_nats_per_token": kl, "model": exact.identity, **scores})


if __name__ == "__main__":
    app.run(main)
