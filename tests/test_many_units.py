"""The sizes of the paper: 65,536 conversations, and a corpus of 200 MB. In the full suite."""

import random
import resource
import statistics
import time

import numpy as np
import pytest
from etils import epath

from cartridges_jax.corpus import Chunk, read_corpus
from cartridges_jax.corpus.tokens import CorpusTokens
from cartridges_jax.distillation import targets as targets_file
from cartridges_jax.distillation.dataset import PackedData, RowShape
from cartridges_jax.models.chat_template import Message
from cartridges_jax.self_study.conversation import SHARDS, Conversation
from cartridges_jax.self_study.run import write_units
from cartridges_jax.self_study.unit import ChunkDrawer
from cartridges_jax.shards import ShardSet

UNITS, PER_UNIT = 4096, 16


def anonymous_bytes():
    """Memory of this process that no file backs."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024


class Watch:
    """Seconds and memory of each step."""

    def __init__(self):
        self.seconds, self.memory, self._last = [], [], time.perf_counter()

    def step(self):
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.memory.append(anonymous_bytes())
        self._last = now

    def is_flat(self, most_growth):
        """The last quarter takes no longer than the second, and memory stays."""
        quarter = len(self.seconds) // 4
        early = statistics.median(self.seconds[quarter : 2 * quarter])
        late = statistics.median(self.seconds[-quarter:])
        growth = max(self.memory[-quarter:]) - max(self.memory[quarter : 2 * quarter])
        print(f"{1e3 * early:.2f} ms, then {1e3 * late:.2f} ms a step; {growth / 2**20:+.1f} MiB")
        return late < 1.5 * early and growth < most_growth


@pytest.mark.full
def test_65536_conversations_are_written_scored_packed_and_resumed(tiny, tmp_path):
    rng = random.Random(0)

    def study(index):
        chunk = Chunk("d", "t", f"Ada lives in house {index}.", 0, 9)
        turns = [
            (
                Message(role="user", content=f"Where does Ada live, {index} {i}?"),
                Message(role="assistant", content=f"In house {index}, {rng.random():.3f}."),
            )
            for i in range(PER_UNIT)
        ]
        watch.step()
        return [Conversation(f"{index}-{i}", chunk, "f", "p", t) for i, t in enumerate(turns)]

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        for wanted in (UNITS * PER_UNIT // 2, UNITS * PER_UNIT):  # and goes on
            watch = Watch()
            shards = ShardSet.open(tmp_path, SHARDS, {"seed": 0})
            write_units(shards, study, wanted, PER_UNIT)
            assert shards.num_records == wanted and watch.is_flat(30 * 2**20)
        assert len(list(tmp_path.glob("*.array_record"))) < 130

        watch, score = Watch(), targets_file._score_unit

        def watched(model, told):
            watch.step()
            if len(watch.seconds) == UNITS // 2 and not stopped:
                stopped.append(True)
                raise RuntimeError("stopped")
            return score(model, told)

        stopped = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(targets_file, "_score_unit", watched)
            with pytest.raises(RuntimeError, match="stopped"):
                targets_file.score_targets(tiny, tmp_path)
            targets = targets_file.score_targets(tiny, tmp_path)
        assert targets.num_records == UNITS * PER_UNIT
        assert len(watch.seconds) == UNITS + 1 and watch.is_flat(60 * 2**20)

        watch = Watch()
        data = PackedData(targets, RowShape(512, 512), 8, seed=0)
        assert data.num_conversations == UNITS * PER_UNIT
        for _, batch in zip(range(400), data.batches(), strict=False):
            assert batch["token_ids"].shape == (8, 512)
            watch.step()
        assert watch.is_flat(60 * 2**20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.full
def test_a_corpus_of_200_megabytes_is_studied_in_little_memory(trained, tmp_path):
    words = "Ada Bo Ira lives works in Oslo Rome as a baker painter and . \n".split(" ")
    rng = random.Random(0)
    block = " ".join(rng.choices(words, k=200_000))
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, megabytes in enumerate([120, *[1] * 80]):  # one file of most of it, and small ones
        with (folder / f"{i}.txt").open("w") as file:
            while file.tell() < megabytes * 10**6:
                file.write(f"{i} {block}\n")
    before = anonymous_bytes()
    documents = read_corpus(folder).documents
    assert sum(d.length for d in documents) > 199e6
    assert anonymous_bytes() - before < 64 * 2**20
    drawer = ChunkDrawer.of(documents, trained, (256, 512), epath.Path(tmp_path))
    assert anonymous_bytes() - before < 192 * 2**20
    watch = Watch()
    for unit in range(200):
        chunk = drawer.chunk(random.Random(unit))
        assert 0 < len(chunk.text) < 5000
        watch.step()
    assert watch.is_flat(16 * 2**20) and max(watch.seconds) < 0.5
    tokens = CorpusTokens.of(
        documents, trained.tokenizer, trained.tokenizer.fingerprint, epath.Path(tmp_path)
    )
    share = np.diff(tokens.ends, prepend=0)[0] / tokens.ends[-1]
    drawn = [drawer.chunk(random.Random(i)).document for i in range(300)]
    assert abs(drawn.count("0.txt") / 300 - share) < 0.1
