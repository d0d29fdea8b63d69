"""Shards: what is listed is whole, what is not listed does not exist."""

import multiprocessing
import subprocess
import sys

import pytest

from cartridges_jax.errors import InputError
from cartridges_jax.shards import ShardSet


@pytest.fixture
def shards(tmp_path):
    made = ShardSet.open(tmp_path, "things", {"seed": 1})
    made.write(0, [b"a", b"bb"], tokens=3)
    made.write(2, [b"", b"c" * 1000], tokens=4)
    return made


def test_what_is_written_is_read(shards):
    again = ShardSet.read(shards.folder, "things")
    assert again.records(0) == [b"a", b"bb"] and again.records(2) == [b"", b"c" * 1000]
    assert (again.num_records, again.total("tokens")) == (4, 7)
    assert again.fingerprint == shards.fingerprint


def test_empty_shards_are_kept(shards):
    shards.write(3, [])
    assert ShardSet.read(shards.folder, "things").records(3) == []


def test_other_inputs_are_refused(shards):
    with pytest.raises(InputError, match="seed=1, now seed=2"):
        ShardSet.open(shards.folder, "things", {"seed": 2})


def test_cut_missing_and_changed_files_are_found(shards):
    path = shards.path(0)
    data = path.read_bytes()
    for size in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="damaged"):
            shards.records(0)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        shards.records(0)
    shards.path(2).rename(path)
    with pytest.raises(InputError, match="damaged"):
        shards.records(0)


def test_temporary_files_of_a_killed_run_are_removed(shards):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = shards.folder / f"things-00009.array_record.tmp-{ended.pid}"
    stale.write_bytes(b"half")
    ShardSet.open(shards.folder, "things", {"seed": 1})
    assert not stale.exists()


def test_what_another_process_has_listed_stays(shards):
    other = ShardSet.open(shards.folder, "things", {"seed": 1})
    shards.write(5, [b"mine"])
    other.write(6, [b"its"])
    assert set(ShardSet.read(shards.folder, "things").shards) == {0, 2, 5, 6}
    assert shards.total("tokens") == 7


def _write_some(folder, indices):
    mine = ShardSet.open(folder, "things", {"seed": 1})
    for index in indices:
        mine.write(index, [b"x" * index])


def test_two_processes_that_write_together_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [
        context.Process(target=_write_some, args=(str(tmp_path), range(i, 60, 2))) for i in (0, 1)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert set(ShardSet.read(tmp_path, "things").shards) == set(range(60))


def test_a_set_that_was_begun_anew_is_not_mixed_with_the_old(shards):
    manifest = shards.folder / "things.manifest.json"
    manifest.unlink()
    ShardSet.open(shards.folder, "things", {"seed": 2}).write(0, [b"new"])
    with pytest.raises(InputError, match="another process"):
        shards.write(1, [b"old"])
    assert ShardSet.read(shards.folder, "things").records(0) == [b"new"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"inputs": {}, "shards": {"0": {"records": "2", "sha256": "x"}}}',
        '{"inputs": {}, "shards": {"0": {"records": 2, "sha256": 5}}}',
        '{"inputs": {}, "shards": {"0": {"sha256": "x"}}}',
    ],
)
def test_a_damaged_manifest_is_one_sentence(shards, text):
    (shards.folder / "things.manifest.json").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        ShardSet.read(shards.folder, "things")
