"""A device that keeps what was written in place of keys and values: the engine without a model.

The next token is a function of all that a token can see, so an answer is right only if every token
has seen exactly its own history: each slot once, none of a stranger's, none that is stale.
"""

import types
import zlib
from collections import defaultdict

import numpy as np

from cartridges_jax.attention.paged import EVERYBODY
from cartridges_jax.engine import engine as engine_module
from cartridges_jax.engine import requests
from cartridges_jax.engine.answers import Generation
from cartridges_jax.engine.engine import Engine
from cartridges_jax.engine.sampling import Told
from cartridges_jax.models.tokenizer_files import load_tokenizer
from cartridges_jax.models.transformer import KV, Transformer
from cartridges_jax.sharding import make_mesh
from tests.conftest import TEST_MODEL

VOCABULARY = 50
TOKENIZER = load_tokenizer(TEST_MODEL)


def next_token(seen, seed, index):
    """Of the slots that a token sees, itself included."""
    return zlib.crc32(repr((sorted(seen, key=repr), int(seed), int(index))).encode()) % VOCABULARY


def loaded(name, tokens):
    """Slots to load."""
    kv = KV(np.zeros((1, len(tokens), 1, 1)), [(name, t) for t in tokens])
    return len(tokens), len(tokens), lambda: kv


class _Groups:
    """The state: for each device group what is on its pages, and its rows' last tokens."""

    def __init__(self, groups, rows):
        self.written = [defaultdict(dict) for _ in range(groups)]
        self.last = np.full((groups, rows + 1), -1)
        self.slots_read = 0

    def step(self, ids, positions, step, size):
        """Writes the tokens of each group; returns what each sees."""
        groups = len(self.written)

        def split(x):
            return x.reshape(groups, -1, *x.shape[1:])

        page, slot, own = map(split, step[:3])
        first, count, pages, base, length = map(split, step.visits[:5])
        ends = split(step.visits.bounds)[:, -1]
        seen = [[[] for _ in range(ids.shape[1])] for _ in range(groups)]
        for d, written in enumerate(self.written):
            for t in range(ids.shape[1]):
                written[page[d, t]][slot[d, t]] = (int(positions[d, t]), int(ids[d, t]))
            for v in range(ends[d]):
                for t in range(first[d, v], first[d, v] + count[d, v]):
                    for i in range(length[d, v]):
                        index = base[d, v] + i if base[d, v] != EVERYBODY else EVERYBODY
                        if index <= own[d, t]:
                            seen[d][t].append(written[pages[d, v, i // size]][i % size])
            if step.own_pages is not None:
                tables = split(step.own_pages)[d]
                for t in range(ids.shape[1]):
                    for i in range(own[d, t] + 1 if page[d, t] else 0):
                        seen[d][t].append(written[tables[t, i // size]][i % size])
        return seen

    def draw(self, seen, slots, draws):
        """Draws behind what each of the step's places sees; `seen` in their order."""
        tokens = np.array([next_token(*x) for x in zip(seen, draws.seed, draws.index, strict=True)])
        split = slots.reshape(len(self.last), -1)
        for d, at in enumerate(split):
            self.last[d, at] = tokens.reshape(split.shape)[d]
        nothing = np.zeros((len(tokens), 1))
        return self, Told(tokens, nothing[:, 0], nothing, nothing)


def make_engine(monkeypatch, groups, config, num_pages, window=10_000):
    """An engine on such a device, with so many pages."""
    size = config.page_size

    def read_piece(_, state, piece, *, tells_prompt):
        assert not tells_prompt
        seen = state.step(piece.token_ids, piece.positions, piece.step, size)
        at = [seen[d][t] for d, some in enumerate(piece.ends) for t in some]
        return *state.draw(at, piece.slots, piece.draws), None

    def decode(_, state, rows):
        ids = np.stack([state.last[d, at] for d, at in enumerate(rows.slots.reshape(groups, -1))])
        seen = state.step(ids, rows.positions.reshape(ids.shape), rows.step, size)
        return state.draw([x for some in seen for x in some], rows.slots, rows.draws)

    def load_slots(state, kv, pages):
        for d, some in enumerate(pages):
            for i, content in enumerate(kv.v if some[0] else ()):
                state.written[d][some[i // size]][i % size] = (str(content[0]), i, content[1])
        return state

    for name, function in {
        "read_piece": read_piece,
        "decode": decode,
        "load_slots": load_slots,
        "placed": lambda _, arrays: arrays,
        "place": lambda _, array, __: array,
        "num_pages": lambda *_: num_pages,
        "new_state": lambda config, mesh, pages, size, rows, *_: _Groups(groups, rows),
        "takes_layers_apart": lambda _: False,
    }.items():
        monkeypatch.setattr(engine_module, name, function)

    def read_answer(_, ids, logprobs, config, top):
        ended = bool(ids) and ids[-1] in config.stop_ids
        reason = "stop" if ended else "length" if len(ids) >= config.max_new_tokens else ""
        return Generation("", ids, logprobs, reason, top)

    monkeypatch.setattr(requests, "read_answer", read_answer)

    class Model(Transformer):
        def __init__(self):
            self.config = types.SimpleNamespace(window=window)

        dtype = None

    return Engine(Model(), TOKENIZER, make_mesh(groups, 1), config)


def plain_answer(context, prompt, config, seed):
    """What is answered behind a context: `context` are lists of tokens, or pairs (name, tokens)."""
    seen, position = [], 0
    for part in context:
        name, tokens = part if isinstance(part, tuple) else (None, part)
        for i, token in enumerate(tokens):
            seen.append((position + i, token) if name is None else (name, i, token))
        position += len(tokens)
    seen += [(position + i, token) for i, token in enumerate(prompt)]
    out = []
    while not out or (out[-1] not in config.stop_ids and len(out) < config.max_new_tokens):
        if out:
            seen.append((position + len(prompt) + len(out) - 1, out[-1]))
        out.append(next_token(seen, seed, len(out)))
    return out
