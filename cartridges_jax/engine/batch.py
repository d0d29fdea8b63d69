"""A planned step as arrays: who is written to which page, who reads which, how tokens are drawn.

Everything is NumPy on the host; lists of the mesh's "data" groups, which each have a scheduler and
pages of their own, lie one behind the other. Sizes are rounded up to few, as each is a program.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cartridges_jax.attention import Step, Visits
from cartridges_jax.attention.paged import EVERYBODY, VISIT_PAGES, Numbers, Shape, shapes_of
from cartridges_jax.engine.pages import Span
from cartridges_jax.engine.sampling import DRAWS, Draws, Sampling
from cartridges_jax.engine.scheduler import Decode, Piece, Row
from cartridges_jax.shapes import power_of_two

LEAST_VISITS = 256
LEAST_OWN_PAGES = 4


class PieceArrays(NamedTuple):
    """A step that reads, [D, T] tokens; tokens are drawn behind R of them on each device."""

    token_ids: Numbers  # [D, T]
    positions: Numbers  # [D, T]
    next_ids: Numbers  # [D, T], the token behind each one in its prompt; 0 behind the last
    step: Step
    ends: Numbers  # [D, R], indices in T
    slots: Numbers  # [D * R], where what is drawn is kept; unused ones point behind the last
    draws: Draws


class DecodeArrays(NamedTuple):
    """A step that makes a token in each of [D * B] rows."""

    slots: Numbers  # [D * B]
    positions: Numbers  # [D * B]
    step: Step
    draws: Draws


class _Run(NamedTuple):
    """Pages that follow one another, and the tokens of a step that follow them."""

    key: Any
    pages: Sequence[int]
    base: int
    length: int


class _Visit(NamedTuple):
    """See `attention.Visits`."""

    first: int
    count: int
    pages: Sequence[int]
    base: int
    length: int
    shape: int  # index


def visits_of(
    entries: Iterable[tuple[int, int, list[_Run]]], page_size: int, shapes: Sequence[Shape]
) -> list[_Visit]:
    """The visits of tokens to the runs that they follow.

    What consecutive entries have in common from the front is visited once for all of them.

    Args:
      entries: first token, number of tokens, and runs, in the order of the tokens.
      page_size: slots.
      shapes: that a visit may have.
    """
    done: list[list[Any]] = []
    open_runs: list[list[Any]] = []  # [run, first token, count], from the front
    end = 0
    for first, count, runs in entries:
        common = 0
        if first == end:
            pairs = zip(open_runs, runs, strict=False)
            common = next((i for i, (o, r) in enumerate(pairs) if o[0].key != r.key), None)
            common = min(len(open_runs), len(runs)) if common is None else common
        done += open_runs[common:]
        del open_runs[common:]
        for one in open_runs:
            one[2] += count
        open_runs += [[run, first, count] for run in runs[common:]]
        end = first + count
    visits = []
    for run, first, count in done + open_runs:
        # The least tile that holds the tokens; of few pages the narrow shape, one after the other.
        tile = next((s.tile for s in shapes if s.tile >= count), shapes[-1].tile)
        fitting = [i for i, s in enumerate(shapes) if s.tile == tile]
        pages, at = -(-run.length // page_size), 0
        while at < pages:
            shape = next(
                (i for i in reversed(fitting) if pages - at > shapes[i].pages // 2), fitting[0]
            )
            width, slots = shapes[shape].pages, at * page_size
            base = run.base if run.base == EVERYBODY else run.base + slots
            length = min(run.length - slots, width * page_size)
            visits.append(_Visit(first, count, run.pages[at : at + width], base, length, shape))
            at += width
    return visits


def piece_arrays(
    pieces: Sequence[Piece | None], page_size: int, tokens: int, ends: int, no_slot: int
) -> PieceArrays:
    """Arrays of a piece of each device of "data"; None reads nothing there.

    Args:
      pieces: what is read.
      page_size: slots.
      tokens: T, which holds all of every piece.
      ends: R, likewise.
      no_slot: a slot that is no row's.
    """
    D = len(pieces)
    ids, positions = np.zeros((D, tokens), np.int32), np.zeros((D, tokens), np.int32)
    page, slot, own, next_ids = (np.zeros((D, tokens), np.int32) for _ in range(4))
    end_at, slots = np.zeros((D, ends), np.int32), np.full((D, ends), no_slot, np.int32)
    visits, drawing = [], []
    shapes = shapes_of(tokens, is_decode=False)
    for d, piece in enumerate(pieces):
        at, drawn, entries = 0, 0, []
        rows = [] if piece is None else piece.drawing
        for segment in () if piece is None else piece.segments:
            owner, count = segment.owner, segment.count
            here = slice(at, at + count)
            index = np.arange(segment.start, segment.start + count, dtype=np.int32)
            of_owner = owner.token_ids[segment.start : segment.start + count + 1]
            ids[d, here] = of_owner[:count]
            next_ids[d, at : at + len(of_owner) - 1] = of_owner[1:]
            positions[d, here] = index + start_of(owner.before)
            page[d, here] = np.asarray(owner.pages, np.int32)[index // page_size]
            slot[d, here] = index % page_size
            own[d, here] = index
            mine = _Run(id(owner), owner.pages, 0, segment.start + count)
            entries.append((at, count, [*_runs(owner.before), mine]))
            if segment.draws:
                end_at[d, drawn] = at + count - 1
                drawn += 1
            at += count
        slots[d, : len(rows)] = [row.slot for row in rows]
        visits.append(visits_of(entries, page_size, shapes))
        drawing.append(rows)
    step = _step((page, slot, own), visits, shapes, None)
    return PieceArrays(
        ids, positions, next_ids, step, end_at, slots.reshape(-1), draws_of(drawing, ends)
    )


def decode_arrays(
    steps: Sequence[Decode | None], page_size: int, rows: int, no_slot: int
) -> DecodeArrays:
    """Arrays of a decoding step of each device of "data"; arguments as above."""
    D = len(steps)
    slots = np.full((D, rows), no_slot, np.int32)
    positions, page, slot, own = (np.zeros((D, rows), np.int32) for _ in range(4))
    longest = max((len(row.pages) for step in steps if step for row in step.rows), default=1)
    own_pages = np.zeros((D, rows, power_of_two(longest, LEAST_OWN_PAGES)), np.int32)
    visits, shapes = [], shapes_of(rows, is_decode=True)
    for d, step in enumerate(steps):
        of_step = [] if step is None else step.rows
        for i, row in enumerate(of_step):
            own_pages[d, i, : len(row.pages)] = row.pages
        n = len(of_step)
        slots[d, :n] = [row.slot for row in of_step]
        own[d, :n] = [] if step is None else step.at
        positions[d, :n] = own[d, :n] + np.asarray([start_of(row.path) for row in of_step], int)
        page[d, :n] = own_pages[d, np.arange(n), own[d, :n] // page_size]
        slot[d, :n] = own[d, :n] % page_size
        entries = ((i, 1, _runs(row.path)) for i, row in enumerate(of_step))
        visits.append(visits_of(entries, page_size, shapes))
    step = _step((page, slot, own), visits, shapes, own_pages.reshape(D * rows, -1))
    drawing = [[] if s is None else s.rows for s in steps]
    return DecodeArrays(slots.reshape(-1), positions.reshape(-1), step, draws_of(drawing, rows))


def start_of(path: Sequence[Span]) -> int:
    """Rope position of the first token that follows some spans."""
    return sum(span.positions for span in path)


def _runs(path: Sequence[Span]) -> list[_Run]:
    return [_Run(span.serial, span.pages, EVERYBODY, span.length) for span in path]


def _step(
    of_tokens: Sequence[np.ndarray],
    visits: Sequence[list[_Visit]],
    shapes: Sequence[Shape],
    own_pages: np.ndarray | None,
) -> Step:
    """A step of pages, slots and own indices [D, T], and the visits of each device."""
    page, slot, own = (x.reshape(-1) for x in of_tokens)
    return Step(page, slot, own, _stacked(visits, shapes), own_pages)


def _stacked(visits: Sequence[list[_Visit]], shapes: Sequence[Shape]) -> Visits:
    """The visits of each device, sorted by their shape."""
    D, M = len(visits), power_of_two(max(map(len, visits), default=1), LEAST_VISITS)
    numbers = np.zeros((4, D, M), np.int32)
    pages = np.zeros((D, M, VISIT_PAGES), np.int32)
    bounds = np.zeros((D, len(shapes)), np.int32)
    for d, some in enumerate(visits):
        for j, visit in enumerate(sorted(some, key=lambda visit: visit.shape)):
            numbers[:, d, j] = visit.first, visit.count, visit.base, visit.length
            pages[d, j, : len(visit.pages)] = visit.pages
        of_shape = [visit.shape for visit in some]
        bounds[d] = np.cumsum(np.bincount(of_shape, minlength=len(shapes)))
    first, count, base, length = numbers.reshape(4, -1)
    return Visits(first, count, pages.reshape(D * M, -1), base, length, bounds.reshape(-1))


def draws_of(rows: Sequence[Sequence[Row]], size: int) -> Draws:
    """How the next token of each row is drawn, `size` rows a device.

    The token is the last one that the row counts as drawn.
    """
    count = len(rows) * size
    ints, floats = np.zeros((3, count), np.int32), np.zeros((3, count), np.float32)
    floats[1] = 1
    how, with_top = 0, False
    for d, some in enumerate(rows):
        for i, row in enumerate(some, d * size):
            sampling: Sampling = row.request.config.sampling
            ints[:, i] = row.request.seed, row.drawn - 1, sampling.top_k
            floats[:, i] = sampling.temperature, sampling.top_p, sampling.min_p
            how = max(how, DRAWS.index(sampling.draw))
            with_top |= row.request.config.top_logprobs > 0
    seed, index, top_k = ints
    temperature, top_p, min_p = floats
    return Draws(seed, index, temperature, top_k, top_p, min_p, np.int32(how), np.asarray(with_top))
