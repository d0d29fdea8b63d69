"""What the experiments make of answers and conversations: on small inputs made by hand."""

import dataclasses
import json
import random

import pytest

from cartridges_jax.corpus.chunkers import Chunk
from cartridges_jax.self_study.conversation import Conversation
from experiments.embedded_world.document_tables import RESULTS
from experiments.embedded_world.documents import held_out_document
from experiments.embedded_world.judging import judge, summary_of
from experiments.embedded_world.prompts import SKIMMED
from experiments.embedded_world.table_summary import largest_within, short_documents, still_valid
from experiments.embedded_world.template_questions import TemplateClient
from experiments.embedded_world.type_scores import scores_of
from experiments.embedded_world.world import asking
from experiments.embedded_world.world.understanding import understand


@pytest.fixture(scope="module")
def minutes():
    """Meeting notes, of which some are corrected later on."""
    return held_out_document("experiments 1", 900, "meeting notes")


def whole(document):
    return Chunk(document.name, document.title, document.text, 0, 10**6)


def conversation(document, question, answer, family="question"):
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation("0-0", whole(document), family, "seed", messages)


def test_conversations_are_judged_by_the_ground_truth(minutes):
    document, made = minutes
    turn = asking.draw_turn(random.Random(0), made, "lookup")
    assert turn is not None
    about = (document, turn.question)
    right = judge(made, conversation(*about, turn.answer))
    wrong = judge(made, conversation(*about, "No idea."))
    beside = judge(made, conversation(document, "How is the weather?", "Fine."))
    refused = judge(made, conversation(*about, "That is not in the text.", SKIMMED))
    assert (right.kind, right.right, right.facts) == ("lookup", True, turn.facts)
    assert (wrong.kind, wrong.right) == ("lookup", False)
    assert (beside.kind, beside.right) == ("", False)
    scores = summary_of(made, [right, beside, beside, right, refused])
    assert scores["valid"]["value"] == 0.5 and scores["valid"]["n"] == 4  # not of the skimmed
    assert scores["right"] == scores["right"] | {"value": 1.0, "n": 1}  # the same counts once
    assert scores["distinct"] == 0.5
    assert scores["covered"] == len(turn.facts) / len(made.facts)
    assert scores["valid_of_all"]["value"] == 0.6
    assert scores["skimmed"] == {
        "conversations": 1,
        "answered with not in the text": 1,
        "though elsewhere in the text": 1,
    }


def test_questions_by_template_ask_for_what_holds_in_the_end(tiny, minutes):
    """A chunk that ends before a correction is asked about nothing that it corrects."""
    document, made = minutes
    late = [s for s in made.statements if s.place == "update"]
    assert late
    cut = min(s.span.start for s in late)
    overruled = {
        (s.thing, s.noun)
        for s in made.window(0, cut).statements
        if made.facts[s.thing, s.noun].value != s.value
    }
    assert overruled
    chunk = dataclasses.replace(whole(document), text=made.text[:cut].rstrip())
    reader = TemplateClient(tiny, made).read(chunk)
    replies = reader.complete([[]] * 200, temperature=1.0, max_new_tokens=1, seeds=range(200))
    asked = {reply.text for reply in replies if reply}
    assert len(asked) > 50
    shown = made.window(0, cut)
    understood = [turn for question in asked if (turn := understand(shown, question))]
    assert len(understood) > 0.7 * len(asked)
    assert not overruled & {fact for turn in understood for fact in turn.facts}


def question(kind, answer, **more):
    return {"id": "0", "type": kind, "question": "?", "answers": [answer], **more}


def test_scores_of_the_model_by_type():
    rows = [
        (question("lookup", "Oslo.", chance=0.25), "Oslo", "It is not in the text."),
        (question("lookup", "Rome.", chance=0.25), "It is not in the text.", "Rome."),
        (question("yes/no", "It is Oslo, so yes."), "It is Rome, so yes.", ""),
        (question("absent", "It is not in the text."), "It is not in the text.", ""),
        (question("lookup", "too many"), "too many", ""),
    ]
    answers = {"full context": [r[1] for r in rows], "no context": [r[2] for r in rows]}
    one = {"tokens": 30, "facts": 2, "questions": [r[0] for r in rows], "answers": answers}
    scores = scores_of([one], wanted=2)
    lookup = scores["types"]["lookup"]
    assert lookup["full context"]["value"] == lookup["no context"]["value"] == 0.5
    assert lookup["full context"]["n"] == 2 and lookup["chance"] == 0.25
    yes = scores["types"]["yes/no"]
    assert yes["full context"]["value"] == 0 and yes["conclusion"]["full context"]["value"] == 1
    assert yes["conclusion"]["no context"]["value"] == 0
    assert scores["absent"]["balanced"] == (1.0 + 0.5) / 2
    assert scores["tokens_of_fact"] == 15
    assert [e["given"] for e in scores["errors"]] == [
        "It is not in the text.",
        "It is Rome, so yes.",
    ]


def test_a_large_compression_that_passes_behind_one_that_fails_is_luck():
    sizes = {f"cartridge {p}": {"compression": 1000 / p} for p in (250, 100, 50)}

    def largest(*lows):
        accuracy = {
            arm: {"difference_to_reference": {"low": low}}
            for arm, low in zip(sizes, lows, strict=True)
        }
        return largest_within({"accuracy": accuracy}, sizes, "cartridge ")

    assert largest(-0.01, -0.04, -0.06) == 10
    assert largest(-0.01, -0.06, -0.01) == 4
    assert largest(-0.06, -0.01, -0.01) is None


def test_only_arms_of_other_settings_are_asked_again():
    runs = {"cartridge 94": {"num_steps": 1600}, "templates 94": {"num_steps": 1600}}
    made_with = {"model": "m", "room": [96, 136], "runs": runs}
    answers = {"full context": ["a"], "cartridge 94": ["b"], "templates 94": ["c"], "gone": ["d"]}
    then = {"made_with": json.loads(json.dumps(made_with)), "answers": answers}
    then["made_with"]["runs"]["gone"] = {"num_steps": 1}
    kept = {arm: answers[arm] for arm in ("full context", "cartridge 94", "templates 94")}
    assert still_valid(then, made_with) == kept
    longer = runs | {"templates 94": {"num_steps": 3200}, "templates 58": {"num_steps": 1600}}
    del kept["templates 94"]
    assert still_valid(then, made_with | {"runs": longer}) == kept
    assert still_valid(then, made_with | {"model": "other"}) == {}
    assert still_valid({}, made_with) == {}


def test_the_committed_table_is_of_the_committed_answers():
    table = json.loads((RESULTS / "cartridge_table.json").read_text())["short_documents"]
    paths = [
        RESULTS / "cartridge_answers" / f"document_{i}.json" for i in range(len(table["documents"]))
    ]
    again = short_documents([json.loads(path.read_text()) for path in paths])
    assert json.loads(json.dumps(again)) == table
