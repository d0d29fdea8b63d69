"""Results as data: an experiment of parts goes on where it was, with the same settings only."""

import json

from experiments.record import found_or_made


def test_a_part_is_made_once_for_its_settings(tmp_path):
    path, made = tmp_path / "part.json", []

    def make(earlier):
        assert earlier.get("answers") == (len(made) or None)
        made.append(True)
        return {"answers": len(made)}

    assert found_or_made(path, {"sizes": (1, 2)}, make)["answers"] == 1
    assert found_or_made(path, {"sizes": (1, 2)}, make)["answers"] == 1
    assert found_or_made(path, {"sizes": (1, 3)}, make)["answers"] == 2
    written = json.loads(path.read_text())
    assert written["answers"] == 2 and written["made_with"] == {"sizes": [1, 3]}
    assert {"command", "date", "hardware", "jax"} <= set(written["made"])
