"""How well the model in the package reads: accuracy by question type on held-out documents.

    python -m experiments.embedded_scores

Twelve documents of about 500 tokens that training never saw, 50 questions each, with the document
in the context, without it, and chance. About one minute on two CPU cores. The result is committed
as experiments/results/embedded_scores.json; the model card quotes it.
"""

from absl import app, flags

from cartridges_jax import load_model
from cartridges_jax.evaluation.arms import FULL_CONTEXT, NO_CONTEXT, answer, control_arms
from cartridges_jax.evaluation.evaluate import score_answers
from cartridges_jax.evaluation.suites import embedded_questions, held_out_document
from cartridges_jax.metrics import progress
from experiments.record import write_result

_DOCUMENTS = flags.DEFINE_integer("documents", 12, "Held-out documents.")
_TOKENS = flags.DEFINE_integer(
    "tokens", 560, "Tokens asked of a document; it comes out some 60 shorter."
)
_QUESTIONS = flags.DEFINE_integer("questions", 50, "Questions for each document.")
_OUT = flags.DEFINE_string("out", "experiments/results/embedded_scores.json", "Result file.")


def main(_) -> None:
    model = load_model("embedded")
    questions, answers, sizes = [], {NO_CONTEXT: [], FULL_CONTEXT: []}, []
    bar = progress(_DOCUMENTS.value, "documents", "doc")
    for i in range(_DOCUMENTS.value):
        name = f"scores {i} {_TOKENS.value}"
        document, made = held_out_document(name, _TOKENS.value)
        asked = embedded_questions(made, name, _QUESTIONS.value)
        questions += asked
        for arm in control_arms(model, [document], num_slots=32, answer_room=160):
            if arm.name in answers:
                answers[arm.name] += answer(model, arm, [q.question for q in asked], 96)
            if arm.name == FULL_CONTEXT:
                sizes.append(arm.num_tokens)
        bar.update()
    bar.close()
    scores = score_answers(questions, answers, FULL_CONTEXT)
    scores["errors"] = [
        {"question": row["question"], "right": row["answers"][0], "given": given["text"]}
        for row in scores.pop("answers")
        if not (given := row["given"][FULL_CONTEXT])["right"]
    ][:40]
    write_result(_OUT.value, scores | {"document_tokens": sizes, "model": model.identity})
    for kind, chance in scores["chance"].items():
        full, none = (scores["accuracy"][a]["by_type"][kind] for a in (FULL_CONTEXT, NO_CONTEXT))
        print(
            f"{kind:<10} n={full['n']:<4} in context {full['value']:.3f} "
            f"({full['low']:.3f} to {full['high']:.3f})  no context {none['value']:.3f}  "
            f"chance {chance:.3f}"
        )


if __name__ == "__main__":
    app.run(main)
