"""Scores against values worked out elsewhere."""

import json

import numpy as np
import pytest

from cartridges_jax.errors import InputError
from cartridges_jax.evaluation.arms import truncated_context
from cartridges_jax.evaluation.marks import score_answers
from cartridges_jax.evaluation.questions import Question, load_questions
from cartridges_jax.evaluation.scoring import (
    is_right,
    paired_difference,
    wilson,
)


def test_wilson_equals_published_values():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        share = wilson(right, n)
        assert (share.low, share.high) == (
            pytest.approx(low, abs=5e-5),
            pytest.approx(high, abs=5e-5),
        )
    assert wilson(29, 29).high == 1.0


def test_paired_difference_is_smaller_than_unpaired_where_arms_agree(rng):
    a = (rng.random(400) < 0.5).tolist()
    b = [not x for x in a[:20]] + a[20:]
    pair = paired_difference(a, b)
    assert pair.value == pytest.approx(np.mean(a) - np.mean(b))
    assert pair.low <= pair.value <= pair.high and pair.high - pair.low < 0.05


def test_paired_interval_equals_a_published_one():
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), square-and-add."""
    before, after = [True] * 2 + [False] * 19, [True] + [False] + [True] * 7 + [False] * 12
    pair = paired_difference(before, after)
    assert (round(pair.low, 3), round(pair.high, 3)) == (-0.507, -0.026)


def test_marks_that_never_differ_are_not_called_certain():
    pair = paired_difference([True] * 20, [True] * 20)
    assert pair.value == 0 and pair.low == pytest.approx(wilson(20, 20).low - 1)


@pytest.mark.parametrize(
    ("parser", "given", "right"),
    [
        ("exact", " ada brown  lives in Oslo ", True),
        ("exact", "Ada Brown lives in Oslo, I think.", False),
        ("exact", '"Ada Brown lives in Oslo".', True),
        ("exact", "“Ada Brown lives in Oslo.”", True),
        ("contains", "I think Ada Brown lives in Oslo, yes", True),
        ("contains", "Ada Brown lives in Oslofjord", False),
        ("lines", "- b: 2\n- a: 1", True),
        ("lines", "a: 1", False),
        ("lines", "a: 1\nb: 2\na: 1", False),
        ("lines", "a: 1\n-b: 2", False),
        ("json", '{"a": 1.0, "b": 2}', True),
        ("json", '{"a": true, "b": 2}', False),
        ("json", "[" * 100_000, False),
        ("json", '{"b": 2,\n "a": 1}', True),
        ("json", '{"a": 1, "b": 3}', False),
        ("json", "a: 1", False),
    ],
)
def test_parsers(parser, given, right):
    accepted = {
        "exact": ["Ada Brown lives in Oslo."],
        "contains": ["ada brown lives in oslo"],
        "lines": ["a: 1\nb: 2"],
        "json": ['{"a": 1, "b": 2}'],
    }[parser]
    assert is_right(given, accepted, parser) is right


@pytest.mark.parametrize(
    ("given", "accepted", "right"),
    [
        ("I do not know.", "no", False),
        ("No, it does not.", "no", True),
        ("The default is 14.", "4", False),
        ("The default is 4.5", "4", False),
        ("It cost 1,100 euros.", "100 euros", False),
        ("It cost 100 euros, then 4.", "4", True),
        ("It fell to -4.", "4", False),
        ("On pages 3-4.", "4", True),
        ("It fell to -4.", "-4", True),
        ("- Oslo\n-Rome", "Rome", True),
    ],
)
def test_what_is_contained_has_borders(given, accepted, right):
    assert is_right(given, [accepted], "contains") is right


def test_accuracy_where_the_reference_is_right():
    questions = [Question(str(i), "a" if i < 2 else "b", "?", ("x",)) for i in range(4)]
    given = {"full context": ["x", "x", "x", "y"], "cartridge": ["x", "y", "x", "x"]}
    scores = score_answers(questions, given, "full context")["accuracy"]
    assert scores["cartridge"]["all"]["value"] == 0.75
    assert scores["cartridge"]["where_reference_is_right"]["value"] == pytest.approx(2 / 3)
    assert scores["cartridge"]["difference_to_reference"]["value"] == 0.0
    assert scores["cartridge"]["by_type"]["a"]["value"] == 0.5


def test_truncation_ends_with_a_sentence_and_is_closed(trained):
    text = "Ada lives in Oslo. She bakes. " * 20
    for budget in range(1, 60, 3):
        cut = truncated_context(trained, "T", text, budget)
        assert len(cut) <= max(budget, 1)
        if len(cut) > 1:
            assert cut[-1] == trained.template.context_closing()[-1]
            assert trained.tokenizer.decode(cut).endswith(".")
    table = '| Ada | Oslo |\n| Ben | Rome |\n\nHe said: "No!"\n'
    ends = set()
    for budget in range(1, 80):
        shown = trained.tokenizer.decode(truncated_context(trained, "T", table, budget))
        ends.add(shown.strip()[-1:])
    assert {"|", '"'} <= ends  # lines of a table, and a sentence that ends with a quotation
    whole = trained.template.render_context("T", text.strip())
    assert truncated_context(trained, "T", text, 10_000) == whole


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "expected"),
        ('{"question": "?"}', "answers must be"),
        ('{"question": "?", "answers": []}', "answers must be"),
        ('{"question": "?", "answer": " . "}', "is no answer"),
        ('{"question": "?", "answer": "\u201c\u201d"}', "is no answer"),
        ('{"question": "?", "answer": "{x", "parser": "json"}', "is no json"),
        (
            '{"question": "?", "answer": "a"}\n{"question": " ?", "answer": "b"}',
            ":2 asks what line 1",
        ),
        ('{"question": "?", "answer": "x", "parser": "eval"}', "is none of"),
        ('{"question": "?", "answer": "x", "parser": ["exact"]}', "is none of"),
        ("[" * 100_000, "is not JSON"),
        ('{"question": "\\ud800", "answer": "x"}', "is not JSON"),
        ("", "holds no question"),
    ],
)
def test_bad_question_files_are_one_sentence(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=words):
        load_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("answer", ["->", "---", "100 %", "\u2260", "=> x"])
def test_signs_may_be_answers(tmp_path, answer):
    for parser in ("exact", "contains", "lines"):
        row = {"question": "Which?", "answer": answer, "parser": parser}
        (tmp_path / "q.jsonl").write_text(json.dumps(row))
        [question] = load_questions(tmp_path / "q.jsonl")
        assert is_right(f" {answer} ", question.answers, parser)
        assert not is_right("<-", question.answers, parser)
    assert is_right("It is a->b.", ["->"], "contains")


def test_a_question_that_is_asked_again_counts_once(tmp_path, caplog):
    """Files come with a byte order mark, Windows line ends and what was pasted twice."""
    row = {"question": "Who is it?", "answers": ["x", "y"]}
    lines = [row, {"question": "Where?", "answer": "z"}, row | {"question": "Who  is it?", "id": 7}]
    text = "\r\n".join(json.dumps(line) for line in [*lines, row])
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = load_questions(tmp_path / "q.jsonl")
    assert [q.question for q in read] == ["Who is it?", "Where?"]
    assert "2 lines ask again" in caplog.text


def test_questions_are_read(tmp_path):
    rows = [
        {"question": "a?", "answer": "x"},
        {"question": "b?", "answers": ["y", "z"], "type": "t"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    read = load_questions(tmp_path / "q.jsonl")
    assert [(q.type, q.answers) for q in read] == [("question", ("x",)), ("t", ("y", "z"))]
    assert np.isnan(wilson(0, 0).value)
