"""Training: resumes bit for bit, the same on every mesh, moves only what may move."""

import dataclasses

import numpy as np
import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.distillation import train as train_module
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.step import learning_rate
from cartridges_jax.distillation.train import train
from cartridges_jax.errors import InputError
from cartridges_jax.metrics import read_metrics
from experiments.embedded_world.text_rows import text_targets
from tests.conftest import MESHES, make_tiny_model

DOCUMENT = Document("d", "People", "Ada Brown lives in Oslo. She works as a baker. " * 12)
CONFIG = TrainConfig(
    num_slots=12,
    num_steps=8,
    rows_per_step=4,
    row_length=128,
    warmup_steps=2,
    checkpoint_every=3,
    learning_rate=0.02,
)


def make_targets(model, folder):
    rows = {"num_rows": 40, "min_tokens": 10, "max_tokens": 60}
    text_targets(model, [DOCUMENT], folder, **rows)
    return folder


def run(model, tmp_path, name, config=CONFIG, **options):
    return train(
        model,
        [DOCUMENT],
        make_targets(model, tmp_path / "data"),
        tmp_path / name,
        config,
        **options,
    )


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_ends_with_the_same_bits(tiny, tmp_path, monkeypatch, stop_at):
    whole = run(tiny, tmp_path, "whole")
    real = train_module.place_batch
    calls = []

    def stopping(*args):
        calls.append(args)
        if len(calls) > stop_at:
            raise StopError
        return real(*args)

    monkeypatch.setattr(train_module, "place_batch", stopping)
    with pytest.raises(StopError):
        run(tiny, tmp_path, "stopped")
    monkeypatch.undo()
    resumed = run(tiny, tmp_path, "stopped")
    np.testing.assert_array_equal(resumed.keys, whole.keys)
    np.testing.assert_array_equal(resumed.values, whole.values)
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped")]
    for row in logs[0] + logs[1]:
        del row["tokens_per_s"]
    assert logs[0] == logs[1] and len(logs[0]) == CONFIG.num_steps


def test_meshes_agree(tmp_path):
    """Also where weights are split over the devices that share rows (the third value)."""
    made = {}
    shapes = (*MESHES, (2, 4, True), (4, 2, True))
    for shape in shapes:
        model = make_tiny_model(*shape)
        made[shape] = run(model, tmp_path / str(shape), "run")
    for shape in shapes[1:]:
        np.testing.assert_allclose(made[shape].keys, made[shapes[0]].keys, atol=3e-3)
        np.testing.assert_allclose(made[shape].values, made[shapes[0]].values, atol=3e-3)


@pytest.mark.parametrize("rows_at_once", [1, 2])
def test_rows_of_a_step_that_are_computed_in_parts(tiny, tmp_path, rows_at_once):
    """The same cartridge but for rounding, and a run may go on with another number."""
    whole = run(tiny, tmp_path, "whole", dataclasses.replace(CONFIG, num_steps=4))
    parts = dataclasses.replace(CONFIG, num_steps=4, rows_at_once=rows_at_once)
    made = run(tiny, tmp_path, "parts", parts)
    np.testing.assert_allclose(made.keys, whole.keys, atol=1e-5)
    np.testing.assert_allclose(made.values, whole.values, atol=1e-5)
    again = run(tiny, tmp_path, "whole", parts)
    np.testing.assert_array_equal(again.keys, whole.keys)
    with pytest.raises(InputError, match="rows_at_once 3 does not divide rows_per_step 4"):
        run(tiny, tmp_path, "no", dataclasses.replace(CONFIG, rows_at_once=3))


def test_frozen_slots_stay_and_the_others_move(tiny, tmp_path):
    config = dataclasses.replace(CONFIG, num_frozen=2)
    start = train_module.initialize_cartridge(tiny, [DOCUMENT], config)
    trained = run(tiny, tmp_path, "run", config)
    np.testing.assert_array_equal(trained.keys[:, :2], start.keys[:, :2])
    np.testing.assert_array_equal(trained.values[:, :2], start.values[:, :2])
    moved = np.abs(np.asarray(trained.keys - start.keys)).max(axis=(0, 2, 3))
    assert (moved[2:] > 1e-4).all()
    assert trained.num_frozen == 2 and trained.provenance["model"] == tiny.identity


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "tail", "loss_on": "all"}, {"loss": "renormalised", "labels": "tokens"}],
)
def test_the_loss_falls(tiny, tmp_path, options):
    run(tiny, tmp_path, "run", dataclasses.replace(CONFIG, num_steps=40, **options))
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_the_best_validated_cartridge_is_kept_also_after_a_stop(tiny, tmp_path):
    def score_by_step(cartridge: Cartridge) -> float:
        seen.append(np.asarray(cartridge.keys))
        return [0.2, 0.9, 0.5][len(seen) - 1]

    seen: list[np.ndarray] = []
    best = run(tiny, tmp_path, "whole", validate=score_by_step)  # at steps 3, 6 and 8
    assert len(seen) == 3
    np.testing.assert_array_equal(best.keys, seen[1])

    def stop_at_the_last(cartridge: Cartridge) -> float:
        if len(seen) == 2:
            raise StopError
        return score_by_step(cartridge)

    seen = []
    with pytest.raises(StopError):
        run(tiny, tmp_path, "stopped", validate=stop_at_the_last)
    again = run(tiny, tmp_path, "stopped", validate=score_by_step)
    np.testing.assert_array_equal(again.keys, best.keys)
    assert len(seen) == 3 and again.provenance["best"] == {"step": 6, "score": 0.9}
    with pytest.raises(InputError, match="validated=True, now validated=False"):
        run(tiny, tmp_path, "stopped")


def test_warm_up_is_above_zero_at_the_first_step():
    rate = learning_rate(TrainConfig(learning_rate=1.0, warmup_steps=4, num_steps=100))
    np.testing.assert_allclose([float(rate(s)) for s in range(4)], [0.25, 0.5, 0.75, 1.0])
    assert float(rate(100)) == pytest.approx(0.1)


@pytest.mark.parametrize("initializer", ["first_tokens", "sampled_spans", "text", "random"])
def test_initialisers(tiny, initializer):
    text = "Other words that are long enough to fill all of the slots, by far."
    config = dataclasses.replace(CONFIG, initializer=initializer, init_text=text)
    made = train_module.initialize_cartridge(tiny, [DOCUMENT], config)
    assert made.num_slots == 12 and made.next_position == 12
    sink = tiny.kv_as_cartridge([tiny.config.bos_token_id])
    np.testing.assert_allclose(made.values[:, 0], sink.values[:, 0], atol=1e-5)
    real = tiny.kv_as_cartridge(tiny.template.render_context(DOCUMENT.title, DOCUMENT.text))
    spread = np.asarray(made.values[:, 1:]).std() / np.asarray(real.values).std()
    assert 0.5 < spread < 2.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_slots": 0}, "num_slots must be above 0"),
        ({"num_slots": 400}, "fewer than the 400 slots"),
        ({"num_frozen": 12}, "it must leave some"),
        ({"num_slots": 480, "row_length": 512}, "exceed the model's window"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
        ({"final_rate_share": -0.5}, "final_rate_share must be at least 0"),
        ({"row_length": 1}, "raise row_length"),
        ({"learning_rate": 3e38}, "lower learning_rate"),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        run(tiny, tmp_path, "run", dataclasses.replace(CONFIG, **change))


def test_a_score_that_is_no_number_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="validate scored nan at step 3"):
        run(tiny, tmp_path, "run", validate=lambda cartridge: float("nan"))


def test_a_checkpoint_without_its_metadata_is_refused(tiny, tmp_path):
    run(tiny, tmp_path, "run")
    for file in (tmp_path / "run" / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        file.write_text("{}")
    with pytest.raises(InputError, match="cannot be read; remove it"):
        run(tiny, tmp_path, "run")


@pytest.mark.parametrize("line", [b"{}", b"3", b"\xff", b'{"step": "1"}'])
def test_a_damaged_log_is_one_sentence(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match="is damaged"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_other_settings_and_other_models_are_refused(tiny, tmp_path):
    run(tiny, tmp_path, "run")
    with pytest.raises(InputError, match=r"learning_rate=0\.02, now learning_rate=0\.01"):
        run(tiny, tmp_path, "run", dataclasses.replace(CONFIG, learning_rate=0.01))
    with pytest.raises(InputError, match=r"not those asked for: corpus\[0\]"):
        text = [Document("d", "People", "Other text. " * 40)]
        train(tiny, text, tmp_path / "data", tmp_path / "run", CONFIG)
    other = make_tiny_model()
    other.identity["weights"] = "other"
    with pytest.raises(InputError, match="scored by another model"):
        train(other, [DOCUMENT], tmp_path / "data", tmp_path / "other", CONFIG)
