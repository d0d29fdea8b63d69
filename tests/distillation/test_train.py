"""Training: resumes bit for bit, the same on every mesh, moves only what may move."""

import dataclasses

import jax
import numpy as np
import pytest

from cartridges_jax.cartridge import Cartridge
from cartridges_jax.corpus import Document
from cartridges_jax.distillation import train as train_module
from cartridges_jax.distillation.budget import fitted
from cartridges_jax.distillation.config import TrainConfig
from cartridges_jax.distillation.job import Job, initialize_cartridge
from cartridges_jax.distillation.step import Schedule, learning_rate
from cartridges_jax.distillation.train import train, train_many
from cartridges_jax.errors import InputError
from cartridges_jax.metrics import read_metrics
from experiments.embedded_world.text_rows import text_targets
from tests.conftest import make_tiny_model

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


SHAPES = [(shape, fsdp) for shape in ((8, 1), (4, 2), (2, 4)) for fsdp in (False, True)]
QUICK = {((8, 1), False, 8), ((4, 2), True, 8), ((2, 4), True, 0)}


@pytest.fixture(scope="module")
def on_one_device(tiny, tmp_path_factory):
    """Folder of the data, settings, and the cartridge and losses that one device gives."""
    folder = tmp_path_factory.mktemp("one")
    config = dataclasses.replace(CONFIG, rows_per_step=32, row_length=64, num_steps=5)
    made = run(tiny, folder, "run", config)
    return folder / "data", config, made, read_metrics(folder / "run" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("shape", "fsdp", "rows_at_once"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.full)
        for case in (
            *(((1, 1), False, rows) for rows in (1, 8)),
            *((*both, rows) for both in SHAPES for rows in (0, 8)),
        )
    ],
)
def test_every_mesh_and_every_accumulation_trains_the_same_cartridge(
    on_one_device, tmp_path, shape, fsdp, rows_at_once
):
    data, config, want, losses = on_one_device
    config = dataclasses.replace(config, rows_at_once=rows_at_once)
    model = make_tiny_model(*shape, fsdp)
    got = train(model, [DOCUMENT], data, tmp_path / "run", config)
    np.testing.assert_allclose(got.keys, want.keys, atol=1e-5)
    np.testing.assert_allclose(got.values, want.values, atol=1e-5)
    found = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    np.testing.assert_allclose(found, [row["loss"] for row in losses], rtol=1e-5)


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


def jobs(model, tmp_path, name):
    """Five that differ in all that jobs of one step may differ in."""
    changes = [
        {"num_steps": 5},
        {"num_slots": 9, "learning_rate": 0.05},
        {"num_steps": 3, "seed": 1, "warmup_steps": 0},
        {"num_slots": 20, "initializer": "sampled_spans", "max_grad_norm": 0.01},
        {"num_steps": 6, "checkpoint_every": 4, "final_rate_share": 1.0},
    ]
    data = make_targets(model, tmp_path / "data")
    return [
        Job([DOCUMENT], data, tmp_path / name / f"{i}", dataclasses.replace(CONFIG, **change))
        for i, change in enumerate(changes)
    ]


@pytest.fixture(scope="module")
def trained_alone(tiny, tmp_path_factory):
    """The folders and cartridges of `jobs`, each trained by itself."""
    alone = jobs(tiny, tmp_path_factory.mktemp("alone"), "alone")
    return [(job.out, train(tiny, [DOCUMENT], job.data, job.out, job.config)) for job in alone]


@pytest.mark.parametrize(
    ("shape", "at_once", "rows_at_once"),
    [
        ((1, 1), 2, 0),
        pytest.param((1, 1), 5, 2, marks=pytest.mark.full),
        pytest.param((2, 4), 2, 0, marks=pytest.mark.full),
        ((4, 2, True), 4, 1),
        pytest.param((4, 2), 1, 4, marks=pytest.mark.full),
    ],
)
def test_cartridges_that_share_steps_are_those_that_were_trained_alone(
    tiny, trained_alone, tmp_path, shape, at_once, rows_at_once
):
    """Each with its own slots, schedule, clipping, data and end; others join where one ends."""
    together = [
        dataclasses.replace(j, config=dataclasses.replace(j.config, rows_at_once=rows_at_once))
        for j in jobs(tiny, tmp_path, "together")
    ]
    made = train_many(make_tiny_model(*shape), together, at_once)
    for (folder, one), other, job in zip(trained_alone, made, together, strict=True):
        assert not isinstance(other, InputError), other
        other = Cartridge.load(other)
        np.testing.assert_allclose(other.keys, one.keys, atol=1e-5)
        np.testing.assert_allclose(other.values, one.values, atol=1e-5)
        left, right = (
            sorted(p.name for p in out.iterdir() if "events" not in p.name)
            for out in (folder, job.out)
        )
        assert left == right
        logs = [read_metrics(out / "metrics.jsonl") for out in (folder, job.out)]
        for a, b in zip(*logs, strict=True):
            assert a["step"] == b["step"] and abs(a["loss"] - b["loss"]) < 1e-5 * a["loss"]
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_a_job_that_fails_harms_no_other(tiny, tmp_path):
    good, bad, missing, *_ = jobs(tiny, tmp_path, "run")
    wild = dataclasses.replace(bad.config, learning_rate=3e38, checkpoint_every=50)
    bad = dataclasses.replace(bad, config=wild)
    missing = dataclasses.replace(missing, data=tmp_path / "nothing")
    made = train_many(tiny, [bad, missing, good], 1)
    assert isinstance(made[0], InputError) and "lower learning_rate" in str(made[0])
    assert isinstance(made[1], InputError) and "there are no targets" in str(made[1])
    want = train(tiny, good.documents, good.data, tmp_path / "alone", good.config)
    assert not isinstance(made[2], InputError), made[2]
    np.testing.assert_allclose(Cartridge.load(made[2]).keys, want.keys, atol=1e-5)
    log = read_metrics(good.out / "metrics.jsonl")  # in the place of the one that failed
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "out", "words"),
    [
        ({"row_length": 64}, "b", r"job 2 \(.*b\) has row_length=64, job 1 has 128"),
        ({"targets_per_row": 7}, "b", "other targets_per_row"),
        ({}, "a", "jobs 1 and 2 have the same out"),
    ],
)
def test_jobs_that_cannot_share_steps_are_refused(tiny, tmp_path, change, out, words):
    first = Job([DOCUMENT], tmp_path / "data", tmp_path / "a", CONFIG)
    other = dataclasses.replace(CONFIG, **change)
    second = Job([DOCUMENT], tmp_path / "data", tmp_path / out, other)
    with pytest.raises(InputError, match=words):
        train_many(tiny, [first, second])


def test_a_step_is_cut_to_the_memory_that_it_may_take(tiny, tmp_path):
    """By the compiler: fewer rows at a time first, then layers that are computed again."""
    config = dataclasses.replace(CONFIG, rows_per_step=4, num_steps=3)
    roomy, tight = (
        fitted(tiny, dataclasses.replace(config, memory_gib=gib), 1) for gib in (1.0, 0.005)
    )
    assert (roomy.rows_at_once, roomy.recompute) == (4, "nothing")
    assert tight.rows_at_once < 4
    given = dataclasses.replace(config, memory_gib=1.0, rows_at_once=2, recompute="layers")
    assert fitted(tiny, given, 1) == given
    assert fitted(tiny, config, 1).recompute == "auto"  # a CPU says nothing of its memory
    with pytest.raises(InputError, match=r"a step needs .* GiB of each device at least, and may"):
        fitted(tiny, dataclasses.replace(config, memory_gib=1e-5, rows_at_once=1), 1)
    want = run(tiny, tmp_path, "roomy", roomy)
    again = dataclasses.replace(config, memory_gib=1.0, recompute="layers")
    np.testing.assert_allclose(run(tiny, tmp_path, "tight", again).keys, want.keys, atol=1e-5)


def test_a_step_moves_nothing_between_host_and_devices(tiny, tmp_path, monkeypatch):
    real, calls = train_module.make_train_step, []

    def guarded(*args):
        step = real(*args)

        def run_step(learning, given, base, batch):
            with jax.transfer_guard("disallow"):
                calls.append(step(learning, given, base, batch))
            return calls[-1]

        return run_step

    monkeypatch.setattr(train_module, "make_train_step", guarded)
    run(tiny, tmp_path, "run", dataclasses.replace(CONFIG, num_steps=3))
    assert len(calls) == 3
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="transfer"):
        jax.jit(lambda x: x + 1)(np.ones(3))  # what the guard is for


def test_frozen_slots_stay_and_the_others_move(tiny, tmp_path):
    config = dataclasses.replace(CONFIG, num_frozen=2)
    start = initialize_cartridge(tiny, [DOCUMENT], config)
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
    schedule = Schedule.of(TrainConfig(learning_rate=1.0, warmup_steps=4, num_steps=100))
    rates = [float(learning_rate(schedule, s)) for s in (0, 1, 2, 3, 100)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 0.1], rtol=1e-6)


@pytest.mark.parametrize("initializer", ["first_tokens", "sampled_spans", "text", "random"])
def test_initialisers(tiny, initializer):
    text = "Other words that are long enough to fill all of the slots, by far."
    config = dataclasses.replace(CONFIG, initializer=initializer, init_text=text)
    made = initialize_cartridge(tiny, [DOCUMENT], config)
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


@pytest.mark.parametrize("file", ["progress/metadata", "state/manifest.ocdbt"])
def test_a_damaged_checkpoint_is_refused(tiny, tmp_path, file):
    run(tiny, tmp_path, "run", dataclasses.replace(CONFIG, num_steps=3))
    damaged = list((tmp_path / "run" / "checkpoints").glob(f"*/{file}"))
    assert damaged
    for path in damaged:
        path.write_text("{}")
    with pytest.raises(InputError, match="cannot be read; remove it"):
        run(tiny, tmp_path, "run", dataclasses.replace(CONFIG, num_steps=3))


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
