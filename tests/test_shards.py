"""Shards: what is listed is whole, what is not listed does not exist."""

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
    stale = shards.folder / "things-00009.array_record.tmp-123"
    stale.write_bytes(b"half")
    ShardSet.open(shards.folder, "things", {"seed": 1})
    assert not stale.exists()


def test_a_damaged_manifest_is_one_sentence(shards):
    (shards.folder / "things.manifest.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        ShardSet.read(shards.folder, "things")
