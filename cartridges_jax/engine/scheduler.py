"""Which rows the next step of the engine reads or decodes, and on which pages.

Plain Python without a device: a step is planned before the tokens of the one before are known, as
the device does steps in order. Rows are admitted in the order of their arrival. A prompt is read in
pieces, several prompts a piece, by turns with decoding. When pages are short, first the spans go
that no row follows, then the row that came last is dropped: it waits, and is read again with what
it has said, so its answer does not change.

Planning a step costs time that grows with its rows and tokens, never with what waits.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

from cartridges_jax.engine.pages import Pages, Span
from cartridges_jax.errors import InputError


@dataclasses.dataclass(eq=False)
class Row:
    """One answer that is being made.

    `token_ids` are those of the prompt and the known ones of the answer; what is on its way is
    counted in `drawn` and `in_flight`.
    """

    path: tuple[Span, ...]
    token_ids: list[int]
    max_new_tokens: int
    arrival: int = 0
    request: Any = None  # the engine's
    prompt_tokens: int = 0
    pages: list[int] = dataclasses.field(default_factory=list)
    read: int = 0  # own tokens that are on the pages, or will be when the steps so far are done
    drawn: int = 0  # tokens of the answer that are drawn, or will be likewise
    in_flight: int = 0  # of these, how many are not known
    slot: int = -1  # its place in the device's state; below 0: it is not admitted
    goal: int = 0  # own tokens to read before one is drawn; behind them it decodes
    is_over: bool = False

    def __post_init__(self):
        self.prompt_tokens = len(self.token_ids)

    @property
    def before(self) -> tuple[Span, ...]:
        """What stands before its first own token."""
        return self.path

    @property
    def to_read(self) -> int:
        """Tokens that are to be read before one is drawn."""
        return max(self.goal - self.read, 0)

    @property
    def can_decode(self) -> bool:
        """Whether the next step may make a token for it."""
        return self.slot >= 0 and not self.to_read and self.drawn < self.max_new_tokens


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens of one span or row that a piece reads."""

    owner: Span | Row
    start: int  # the first one's index among the owner's own tokens
    count: int
    draws: bool  # whether the prompt ends here, and a token is drawn


@dataclasses.dataclass(frozen=True)
class Piece:
    """A step that reads; what a token follows may be read by the same step, before it."""

    segments: list[Segment]

    @property
    def num_tokens(self) -> int:
        return sum(s.count for s in self.segments)

    @property
    def drawing(self) -> list[Row]:
        """The rows that a token is drawn for."""
        return [s.owner for s in self.segments if s.draws and isinstance(s.owner, Row)]


@dataclasses.dataclass(frozen=True)
class Decode:
    """A step that makes one more token in each row; rows of one path stand beside each other."""

    rows: list[Row]
    at: list[int]  # index of the token that each reads, counted in its own


class Scheduler:
    """Plans steps over one pool of pages."""

    def __init__(self, pages: Pages, max_rows: int, piece_tokens: int, piece_rows: int):
        """Makes one without rows.

        Args:
          pages: of the pool.
          max_rows: rows that are admitted at a time.
          piece_tokens: most tokens of a piece.
          piece_rows: most rows that a piece reads to the end of their prompts.
        """
        self.pages = pages
        self._piece_tokens, self._piece_rows = piece_tokens, piece_rows
        self._free_slots = list(range(max_rows - 1, -1, -1))
        self._waiting: list[Row] = []  # by arrival
        self._rows: list[Row] = []  # admitted, by arrival
        self._resident: dict[Span, None] = {}
        self._loads: list[Span] = []
        self._arrivals = 0
        self._clock = 0
        self.num_dropped = 0  # rows, for want of pages

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def rows(self) -> list[Row]:
        """The admitted ones, by arrival."""
        return list(self._rows)

    @property
    def resident(self) -> list[Span]:
        """The spans that are on pages."""
        return list(self._resident)

    @property
    def fills_a_piece(self) -> bool:
        """Whether there is as much to read as a step takes, in as many rows as may come."""
        count = sum(owner.to_read for row in self._rows for owner in {*row.path, row})
        for row in self._waiting[: len(self._free_slots)]:
            if count >= self._piece_tokens:
                break
            count += len(row.token_ids)
        return count >= self._piece_tokens

    @property
    def num_decoding(self) -> int:
        """Rows that the next step may make a token for."""
        return sum(row.can_decode for row in self._rows)

    def check_fits(self, row: Row) -> None:
        """Raises InputError if a row would not fit the pool if it were alone."""
        spans = sum(self.pages.needed(span.length) for span in row.path)
        own = self.pages.needed(row.prompt_tokens + row.max_new_tokens)
        if spans + own > self.pages.usable:
            raise InputError(
                f"context, prompt and {row.max_new_tokens} new tokens take {spans + own} pages of "
                f"{self.pages.size} slots; the pool has {self.pages.usable}"
            )

    def add(self, row: Row) -> None:
        """Lets a row wait for its turn; InputError as `check_fits`."""
        self.check_fits(row)
        row.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.append(row)

    def finish(self, row: Row) -> None:
        """Ends a row, whatever it is doing; what is on its way for it is not wanted any more."""
        if row.is_over:
            return
        row.is_over = True
        if row.slot >= 0:
            self._leave(row)
        else:
            self._waiting.remove(row)

    def know(self, row: Row, token_id: int) -> None:
        """Takes a token that a step has drawn for a row."""
        row.in_flight -= 1
        if not row.is_over:
            row.token_ids.append(token_id)

    def take_loads(self) -> list[Span]:
        """The spans that must be loaded before the steps that are planned from now on."""
        loads, self._loads = self._loads, []
        return loads

    def plan_piece(self) -> Piece | None:
        """The next step that reads, as full as can be; None if nothing is there to read."""
        self._admit()
        segments: list[Segment] = []
        room, may_draw = self._piece_tokens, self._piece_rows
        for row in self._rows:
            for owner in (*row.path, row):
                missing = owner.to_read
                if not missing:
                    continue
                count = min(missing, room)
                draws = owner is row and count == missing
                if not count or (draws and not may_draw):
                    return Piece(segments) if segments else None
                segments.append(Segment(owner, owner.read, count, draws))
                owner.read += count
                room -= count
                if draws:
                    may_draw -= 1
                    row.drawn += 1
                    row.in_flight += 1
        return Piece(segments) if segments else None

    def plan_decode(self) -> Decode | None:
        """The next step that makes a token in each row that can; None if there is none."""
        for row in list(self._rows):
            if row.can_decode:
                self._grow(row)
        ready = [row for row in self._rows if row.can_decode]  # some may have been dropped
        if not ready:
            return None
        ready.sort(key=lambda row: ([span.serial for span in row.path], row.arrival))
        at = [row.read for row in ready]
        for row in ready:
            row.read += 1
            row.drawn += 1
            row.in_flight += 1
        return Decode(ready, at)

    def _admit(self) -> None:
        """Gives waiting rows their pages, and those of their spans, as long as there are any."""
        while self._waiting and self._free_slots:
            row = self._waiting[0]
            missing = [span for span in row.path if not span.pages]
            needed = self.pages.needed(len(row.token_ids) + 1)
            needed += sum(self.pages.needed(span.length) for span in missing)
            spare = len(self._rows)  # a page that each may want soon
            # A token on its way to a row that was dropped has to be read again.
            if row.in_flight or not self._make_room(needed, spare, keep=row.path):
                return
            del self._waiting[0]
            for span in missing:
                span.pages = self.pages.take(self.pages.needed(span.length))
                span.read = 0
                self._resident[span] = None
                if span.source is not None:
                    self._loads.append(span)
                    span.read = span.length
            self._clock += 1
            for span in row.path:
                span.followers += 1
                span.last_used = self._clock
            row.pages = self.pages.take(self.pages.needed(len(row.token_ids) + 1))
            row.read, row.goal = 0, len(row.token_ids)
            row.slot = self._free_slots.pop()
            bisect.insort(self._rows, row, key=lambda row: row.arrival)

    def _make_room(self, needed: int, spare: int = 0, keep: Sequence[Span] = ()) -> bool:
        """Makes `needed` pages free at the cost of unused spans, if that is enough.

        `spare` more are left free, at nobody's cost.
        """
        idle = [s for s in self._resident if not s.followers and s not in keep]
        if self.pages.num_free + sum(len(s.pages) for s in idle) < needed + spare:
            return False
        for span in sorted(idle, key=lambda span: span.last_used):
            if self.pages.num_free >= needed:
                break
            self.forget(span)
        return True

    def forget(self, span: Span) -> None:
        """Takes the pages of a span that no row follows; it is read or loaded again when needed."""
        assert not span.followers, "a row follows the span"
        if span in self._resident:
            del self._resident[span]
            self.pages.give_back(span.pages)
            self._loads = [s for s in self._loads if s is not span]

    def _grow(self, row: Row) -> None:
        """Gives a row the page of its next token; drops rows for it, the last to come first."""
        while row.slot >= 0 and row.read >= len(row.pages) * self.pages.size:
            if self._make_room(1):
                row.pages += self.pages.take(1)
            else:
                self._drop(self._rows[-1])

    def _drop(self, row: Row) -> None:
        """Lets an admitted row wait again."""
        self.num_dropped += 1
        self._leave(row)
        bisect.insort(self._waiting, row, key=lambda row: row.arrival)

    def _leave(self, row: Row) -> None:
        self._rows.remove(row)
        self.pages.give_back(row.pages)
        self._free_slots.append(row.slot)
        row.slot, row.read = -1, 0
        for span in row.path:
            span.followers -= 1
