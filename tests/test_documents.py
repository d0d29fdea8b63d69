"""README and model card say what the committed results say, which are of the shipped weights."""

import json
import re

import pytest

from experiments.document_tables import DOCUMENTS, RESULTS, TABLES, filled


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.parent.name)
def test_tables_are_the_committed_results(path):
    text = path.read_text()
    assert filled(text) == text


def test_every_table_stands_in_one_document():
    places = [name for p in DOCUMENTS for name in re.findall("<!-- ([^/].*) -->", p.read_text())]
    assert sorted(places) == sorted(TABLES)


@pytest.mark.parametrize("name", ["embedded_scores", "self_study_quality"])
def test_results_are_of_the_shipped_weights(embedded, name):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    assert result["model"]["weights"] == embedded.identity["weights"]
