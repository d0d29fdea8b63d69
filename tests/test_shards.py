"""Shards: what is listed is whole, what is not listed does not exist."""

import multiprocessing
import os
import pathlib
import random
import subprocess
import sys

import pytest

from cartridges_jax import files, record_files
from cartridges_jax import shards as shards_module
from cartridges_jax.errors import InputError
from cartridges_jax.shards import Records, ShardSet


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
    path.write_bytes(shards.path(2).read_bytes())
    with pytest.raises(InputError, match="damaged"):
        shards.records(0)


def test_temporary_files_of_a_killed_run_are_removed(shards):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = files.temporary_name(shards.folder / "things-00009.array_record")
    gone = mine.with_name(mine.name.replace(f"-{os.getpid()}", f"-{ended.pid}"))
    others = mine.with_name(f"{mine.name.partition('.tmp-')[0]}.tmp-elsewhere-{ended.pid}")
    for path in (mine, gone, others):
        path.write_bytes(b"half")
    ShardSet.open(shards.folder, "things", {"seed": 1})
    # Who is at work, and what another host of a shared disk writes, is left alone.
    assert mine.exists() and not gone.exists() and others.exists()


def test_what_another_process_has_listed_stays(shards):
    other = ShardSet.open(shards.folder, "things", {"seed": 1})
    shards.write(5, [b"mine"])
    other.write(6, [b"its"])
    assert set(ShardSet.read(shards.folder, "things").units) == {0, 2, 5, 6}
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
    assert set(ShardSet.read(tmp_path, "things").units) == set(range(60))


def test_a_set_that_was_begun_anew_is_not_mixed_with_the_old(shards):
    manifest = shards.folder / "things.manifest.jsonl"
    manifest.unlink()
    ShardSet.open(shards.folder, "things", {"seed": 2}).write(0, [b"new"])
    with pytest.raises(InputError, match="another process"):
        shards.write(1, [b"old"])
    assert ShardSet.read(shards.folder, "things").records(0) == [b"new"]


HEAD = '{"id": "x"}\n{"inputs": {}}\n'


@pytest.mark.parametrize(
    "text",
    [
        "{\n{\n",
        HEAD + '{"unit": 0, "records": "2", "sha256": "x"}\n',
        HEAD + '{"unit": 0, "records": 2, "sha256": 5}\n',
        HEAD + '{"unit": 0, "sha256": "x"}\n',
        HEAD + '{"unit": 0, "rec\n{"unit": 1, "records": 0, "sha256": "x"}\n',
        HEAD + '{"pack": "x", "units": 5}\n',
        HEAD + "[]\n",
    ],
)
def test_a_damaged_manifest_is_one_sentence(shards, text):
    (shards.folder / "things.manifest.jsonl").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        ShardSet.read(shards.folder, "things")


def test_a_set_of_an_earlier_version_is_told(tmp_path):
    (tmp_path / "things.manifest.json").write_text("{}")
    for call in (
        lambda: ShardSet.read(tmp_path, "things"),
        lambda: ShardSet.open(tmp_path, "things", {}),
    ):
        with pytest.raises(InputError, match="of an earlier version; choose another folder"):
            call()


@pytest.mark.parametrize("cut", range(1, 400, 13))
def test_a_line_that_a_kill_has_cut_does_not_exist(shards, cut):
    """At any byte: what was listed before stays, and the next unit is listed behind it."""
    manifest = shards.folder / "things.manifest.jsonl"
    data = manifest.read_bytes()
    manifest.write_bytes(data[:-cut])
    whole = data[:-cut].count(b"\n")
    again = ShardSet.open(shards.folder, "things", {"seed": 1})
    assert set(again.units) == set([0, 2][: max(0, whole - 2)])
    again.write(7, [b"new"])
    read = ShardSet.read(shards.folder, "things")
    assert set(read.units) == {*again.units, 7} and read.records(7) == [b"new"]


def random_records(rng, count):
    return [rng.randbytes(rng.randrange(60)) for _ in range(count)]


def packed(monkeypatch, records=20, units=6):
    monkeypatch.setattr(shards_module, "PACK_RECORDS", records)
    monkeypatch.setattr(shards_module, "PACK_UNITS", units)


def test_units_are_packed_and_nobody_can_tell(tmp_path, monkeypatch):
    """Written in any order, some again, some empty: the same records, hashes and order."""
    rng = random.Random(0)
    sets = {}
    for name, few in (("apart", 10**9), ("packed", 20)):
        packed(monkeypatch, few, few)
        made = ShardSet.open(tmp_path / name, "things", {})
        rng.seed(1)
        order = rng.sample(range(60), 60)
        for index in order + order[:5]:  # the last again, of another source
            again = index in made.units
            made.write(index, random_records(rng, rng.randrange(7)), source=again, tokens=index)
        sets[name] = made
    apart, both = sets["apart"], sets["packed"]
    assert apart.fingerprint == both.fingerprint and apart.num_records == both.num_records
    assert both.num_records == sum(unit["records"] for unit in both.units.values())
    again = ShardSet.read(tmp_path / "packed", "things")
    assert len(list((tmp_path / "packed").glob("*.array_record"))) < 20
    for index in range(60):
        assert again.records(index) == apart.records(index) == both.records(index)
    one, other = Records(apart), Records(again)
    assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]
    assert len(one) == apart.num_records


def test_a_reader_follows_what_another_process_packs(tmp_path, monkeypatch):
    packed(monkeypatch)
    writer = ShardSet.open(tmp_path, "things", {})
    writer.write(0, [b"first"])
    reader = ShardSet.read(tmp_path, "things")
    for index in range(1, 8):
        writer.write(index, [b"x"])
    assert not list(tmp_path.glob("things-00000-*"))
    assert reader.records(0) == [b"first"]


@pytest.mark.parametrize("step", ["write_file", "_append", "unlink"])
def test_a_kill_while_packing_loses_nothing(tmp_path, monkeypatch, step):
    packed(monkeypatch)
    made = ShardSet.open(tmp_path, "things", {})
    for index in range(5):
        made.write(index, [bytes([index])])
    wanted = made.fingerprint

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "unlink":
            patch.setattr(type(made.path(0)), "unlink", killed)
        elif step == "write_file":
            patch.setattr(shards_module, step, killed)
        else:
            patch.setattr(made, step, killed)
        with pytest.raises(KeyboardInterrupt):
            made._pack()
    again = ShardSet.open(tmp_path, "things", {})
    assert again.fingerprint == wanted
    assert [again.records(i) for i in range(5)] == [[bytes([i])] for i in range(5)]
    again.write(5, [b"more"])
    last = ShardSet.open(tmp_path, "things", {})
    assert len(list(tmp_path.glob("*.array_record"))) == 1 + (step == "unlink")
    assert [last.records(i) for i in range(6)] == [*([bytes([i])] for i in range(5)), [b"more"]]


def test_a_unit_that_is_listed_stays(shards):
    """Two processes may make the same unit, not to the same bytes: the first one counts."""
    other = ShardSet.open(shards.folder, "things", {"seed": 1})
    shards.write(9, [b"first"])
    other.write(9, [b"second", b"more"])
    assert ShardSet.read(shards.folder, "things").records(9) == [b"first"]
    assert other.records(9) == [b"first"]
    assert len(list(shards.folder.glob("things-00009-*"))) == 1
    other.write(9, [b"of another text"], source="x")
    shards.refresh()
    assert shards.records(9) == other.records(9) == [b"of another text"]
    assert len(list(shards.folder.glob("things-00009-*"))) == 1


def test_a_damaged_unit_keeps_no_other_from_being_written(tmp_path, monkeypatch):
    packed(monkeypatch)
    made = ShardSet.open(tmp_path, "things", {})
    made.write(0, [b"x" * 100])
    made.path(0).write_bytes(b"short")
    for index in range(1, 20):
        made.write(index, [b"%d" % index])
    assert [made.records(i) for i in range(1, 20)] == [[b"%d" % i] for i in range(1, 20)]
    with pytest.raises(InputError, match="is damaged"):
        made.records(0)


def test_records_follow_what_another_process_packs(tmp_path, monkeypatch):
    packed(monkeypatch)
    writer = ShardSet.open(tmp_path, "things", {})
    writer.write(0, [b"first", b"second"])
    records = Records(ShardSet.read(tmp_path, "things"))
    for index in range(1, 8):
        writer.write(index, [b"x"])
    assert [records[i] for i in range(2)] == [b"first", b"second"]
    for path in tmp_path.glob("things-pack-*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="is damaged"):
        records[0]


@pytest.mark.parametrize("room", [0, 1, 30, 64, 65, 200])
def test_a_manifest_that_finds_no_room_stays_as_it_was(shards, room):
    """A short write, and then none: what did not fit is not written by closing the file."""
    manifest = pathlib.Path(shards.folder) / "things.manifest.jsonl"
    before = manifest.read_bytes()
    code = (
        "import resource, signal, sys\n"
        "from cartridges_jax.shards import ShardSet\n"
        "made = ShardSet.open(sys.argv[1], 'things', {'seed': 1})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "most = int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))\n"
        "try: made.write(7, [], note='x' * 300)\n"
        "except Exception as error: print(error)\n"
    )
    most = str(len(before) + room)
    root = str(pathlib.Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(shards.folder), most], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert "cannot write" in done.stdout, done.stderr
    assert manifest.read_bytes() == before
    assert set(ShardSet.open(shards.folder, "things", {"seed": 1}).units) == {0, 2}


MANY = 500


def _write_all(folder, seed, done):
    shards_module.PACK_RECORDS, shards_module.PACK_UNITS = 9, 5
    rng = random.Random(seed)
    mine = ShardSet.open(folder, "things", {"seed": 1})
    for index in range(MANY):
        mine.refresh()
        if index not in mine.units:
            mine.write(index, [b"%d by %d" % (index, seed)] * rng.randrange(3))
    done.set()


def test_two_processes_that_are_killed_lose_nothing(tmp_path):
    """They make other bytes of the same units, pack, and are ended at random moments."""
    # A server that forks: this process may have threads of jax, and a new one takes a second.
    context, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["tests.test_shards"])
    done = context.Event()
    for seed in range(1, 400):
        both = [
            context.Process(target=_write_all, args=(str(tmp_path), 2 * seed + i, done))
            for i in (0, 1)
        ]
        for one in both:
            one.start()
        for one in both:
            one.join(rng.uniform(0.01, 0.06))
            one.kill()
            one.join()
        if done.is_set():
            break
    assert done.is_set() and seed > 3
    read = ShardSet.open(tmp_path, "things", {"seed": 1})
    assert set(read.units) == set(range(MANY))
    for index in range(MANY):
        records = read.records(index)
        assert len(set(records)) <= 1
        assert all(record.startswith(b"%d by " % index) for record in records)
    assert len(list(tmp_path.glob("*.array_record"))) < 30 + MANY // 9


def test_few_files_are_open(tmp_path, monkeypatch):
    packed(monkeypatch, 10**9, 10**9)
    monkeypatch.setattr(record_files, "OPEN_FILES", 4)
    made = ShardSet.open(tmp_path, "things", {})
    for index in range(30):
        made.write(index, [b"x%d" % index])
    records = Records(made)
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for i in random.Random(0).sample(range(30), 30):
        assert records[i] == b"x%d" % i
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= before + 5
