"""README and model card say what the committed results say, which are of the shipped weights."""

import json
import re

import pytest

from experiments.embedded_world.document_tables import DOCUMENTS, RESULTS, TABLES, _of_today, filled


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.parent.name)
def test_tables_are_the_committed_results(path):
    text = path.read_text()
    assert filled(text) == text


def test_every_table_stands_in_one_document():
    places = [name for p in DOCUMENTS for name in re.findall("<!-- ([^/].*) -->", p.read_text())]
    assert sorted(places) == sorted(TABLES)


def of_the_weights():
    answers = sorted((RESULTS / "cartridge_answers").glob("*.json"))
    names = ("scores", "self_study_quality", "cartridge_table", "int8_drift")
    return [*(RESULTS / f"{name}.json" for name in names), *answers]


@pytest.mark.parametrize("path", of_the_weights(), ids=lambda p: p.stem)
def test_results_are_of_the_shipped_weights(trained, path):
    result = json.loads(path.read_text())
    model = result["made_with"]["model"] if "made_with" in result else result["model"]
    assert model["weights"] == trained.identity["weights"]


def test_a_result_of_other_settings_is_told():
    now = {"steps": 1600, "shares": (1, 2)}
    assert _of_today({"steps": 1600, "shares": [1, 2], "more": 1}, now) == ""
    assert "changed" in _of_today({"steps": 800, "shares": [1, 2]}, now)
