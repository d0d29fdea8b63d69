"""The engine: many requests, each behind its own contexts, on one resident model.

Whoever waits for an answer makes the next step, for all that are in flight: there is no thread of
its own, and several threads may wait at once. A step is started before the results of the one
before are read, so the host works while the device does.
"""

import collections
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cartridges_jax.engine.answers import Generation
from cartridges_jax.engine.batch import decode_arrays, piece_arrays
from cartridges_jax.engine.memory import EngineConfig, num_pages, takes_layers_apart
from cartridges_jax.engine.pages import Pages, Span
from cartridges_jax.engine.requests import Answer, Context, Counts, Request, so_far
from cartridges_jax.engine.sampling import Told
from cartridges_jax.engine.scheduler import Piece, Row, Scheduler
from cartridges_jax.engine.steps import (
    Weights,
    decode,
    in_order,
    load_slots,
    new_state,
    placed,
    read_piece,
)
from cartridges_jax.errors import InputError
from cartridges_jax.models.tokenizer import Tokenizer
from cartridges_jax.models.transformer import KV, Transformer
from cartridges_jax.sharding import DATA, place

PATIENCE = 4  # decoding steps that a piece which is not full waits, while many rows decode
LOOK_TOKENS = 8  # an answer's text is looked at after so many more of its tokens


class _Started(NamedTuple):
    """A step that is on its way: whose its places are, and its results."""

    answers: list[Answer | None]
    drawn: Told
    # Of prompts that are told about: whose, from which token of the piece on, from which one of the
    # prompt on, how many.
    prompts: Sequence[tuple[Answer, int, int, int]] = ()
    of_prompts: Told | None = None


class Engine:
    """Answers requests behind contexts that they share.

    On each device group of "data" it has a scheduler and a pool of pages; a step is the same
    program on all of them. Costs of a step are told in `attention.paged`.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        mesh: Mesh,
        config: EngineConfig | None = None,
    ):
        """Makes the pool.

        Args:
          model: the base, on `mesh`.
          tokenizer: reads answers, for their stop texts.
          mesh: of this process's devices.
          config: sizes.
        """
        self.config = config or EngineConfig()
        self.mesh, self.tokenizer = mesh, tokenizer
        apart = takes_layers_apart(model)
        with jax.set_mesh(mesh):
            self._weights = Weights(model.unstacked() if apart else model)
        self.window = model.config.window
        c, pages = self.config, num_pages(model, mesh, self.config)
        sizes = pages, c.page_size, c.max_rows
        self._state = new_state(model.config, mesh, *sizes, model.dtype, apart)
        self._schedulers = [
            Scheduler(Pages(pages, c.page_size), c.max_rows, c.piece_sizes[-1], c.piece_rows)
            for _ in range(mesh.shape[DATA])
        ]
        # Requests are shared out evenly.
        self._groups = itertools.cycle(range(len(self._schedulers)))
        self.counts = Counts()
        self._copies: weakref.WeakKeyDictionary[Span, list[Span]] = weakref.WeakKeyDictionary()
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._flying: _Started | None = None
        self._answers: dict[Row, Answer] = {}
        self._since_read = 1  # steps since the last one that read
        self._turn = threading.Condition()
        self._driven = self._is_closed = False

    def close(self) -> None:
        """Ends all that is in flight: whoever waits for it gets a RuntimeError."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()

    # Contexts.

    def context(self, token_ids: Sequence[int], behind: Context | None = None) -> Context:
        """Text as a context, read when a request first follows it."""
        before = () if behind is None else behind.spans
        return self._kept([*before, Span.of_tokens(list(token_ids), before)], behind)

    def context_of(self, slots: Sequence[tuple[int, int, Callable[[], KV]]]) -> Context:
        """Slots as a context, loaded when a request first follows it.

        Args:
          slots: one behind the other; of each how many, the positions that they take, and what
            gives them, [L, P, K, H] on the mesh, whenever they have to be loaded.
        """
        return self._kept([Span(count, positions, source=give) for count, positions, give in slots])

    def _kept(self, spans: Sequence[Span], behind: Context | None = None) -> Context:
        context = Context(spans, behind)
        own = [span for span in spans if behind is None or span not in behind.spans]
        weakref.finalize(context, self._inbox.append, lambda: self._forget(own)).atexit = False
        return context

    def _forget(self, spans: Sequence[Span]) -> None:
        """Lets spans go whose context is no longer in use."""
        for span in spans:
            for scheduler, copy in zip(self._schedulers, self._copies_of(span), strict=True):
                copy.is_kept = False
                if not copy.followers:
                    scheduler.forget(copy)

    def _copies_of(self, span: Span) -> list[Span]:
        """The span as each scheduler knows it."""
        if len(self._schedulers) == 1:
            return [span]
        if span not in self._copies:
            before = [self._copies_of(one) for one in span.before]
            fields = span.length, span.positions, span.token_ids
            self._copies[span] = [
                Span(*fields, tuple(b[d] for b in before), span.source)
                for d in range(len(self._schedulers))
            ]
        return self._copies[span]

    # Requests.

    def submit(self, request: Request) -> Answer:
        """Takes a request; its answer is made while somebody waits for it or another one.

        Raises:
          InputError: if the prompt is empty, or does not fit the window or the pool.
        """
        request.config.check()
        if not len(request.token_ids):
            raise InputError("a prompt to generate from is empty")
        start = 0 if request.context is None else request.context.next_position
        longest = start + len(request.token_ids) + request.config.max_new_tokens
        if longest > self.window:
            raise InputError(
                f"context, prompt and {request.config.max_new_tokens} new tokens need {longest} "
                f"positions, the model's window is {self.window}"
            )
        spans = () if request.context is None else request.context.spans
        group = next(self._groups)
        path = tuple(self._copies_of(span)[group] for span in spans)
        row = Row(path, list(request.token_ids), request.config.max_new_tokens, request=request)
        self._schedulers[group].check_fits(row)
        answer = Answer(row, group)
        self._inbox.append(lambda: self._take(answer))
        return answer

    def _take(self, answer: Answer) -> None:
        self._answers[answer.row] = answer
        self._schedulers[answer.group].add(answer.row)

    def cancel(self, answer: Answer) -> None:
        """Ends an answer where it is; nothing more is made of it."""
        if answer.generation is None:
            self._inbox.append(lambda: self._end(answer))

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, Generation]]:
        """Yields the answers to requests with their numbers, as they come.

        What is not there when the caller stops is cancelled. InputError as `submit`.
        """
        answers: list[Answer] = []
        try:
            answers += (self.submit(request) for request in requests)
            left = dict(enumerate(answers))
            while left:
                self.advance(lambda left=left: any(a.generation for a in left.values()))
                done = {i: a.generation for i, a in left.items() if a.generation}
                left = {i: answer for i, answer in left.items() if i not in done}
                yield from done.items()
        finally:
            for answer in answers:
                self.cancel(answer)

    def watch(self, answer: Answer) -> Iterator[Generation]:
        """Yields an answer as it grows; one that is not at its end has the finish_reason ""."""
        known = 0
        try:
            while answer.generation is None:
                self.advance(lambda known=known: answer.generation or len(answer.token_ids) > known)
                if answer.generation is None:
                    known = len(answer.token_ids)
                    yield so_far(self.tokenizer, answer)
            yield answer.generation
        finally:
            self.cancel(answer)

    def advance(self, is_enough: Callable[[], Any]) -> None:
        """Makes steps, by turns with other threads, until it is enough."""
        while True:
            with self._turn:
                while self._driven and not is_enough():
                    self._turn.wait()
                if is_enough():
                    return
                if self._is_closed:
                    raise RuntimeError("the engine is closed")
                if not (self._answers or self._inbox):
                    raise RuntimeError("what is waited for is none of the engine's")
                self._driven = True
            try:
                self._step()
            finally:
                with self._turn:
                    self._driven = False
                    self._turn.notify_all()

    # Steps.

    def _step(self) -> None:
        """Starts the next step, and takes the results of the one before."""
        while self._inbox:
            self._inbox.popleft()()
        with jax.set_mesh(self.mesh):
            started = self._start()
        if started is None and self._flying is None and self._answers:
            raise RuntimeError("no row can go on")  # pages are lost: a mistake of the scheduler
        flying, self._flying = self._flying, started
        if flying is not None:
            self._collect(flying)
        if not self._answers:
            self._flying = None  # nobody wants what it draws

    def _start(self) -> _Started | None:
        """Plans and starts a step; reading and decoding take turns where both are wanted.

        While many rows decode, a piece waits some steps for what fills it.
        """
        kinds = (self._start_piece, self._start_decode)
        for start in kinds if self._is_to_read() else reversed(kinds):
            started = start()
            if started is not None:
                self._since_read = 0 if start == self._start_piece else self._since_read + 1
                self.counts.steps += 1
                self.counts.dropped_rows = sum(s.num_dropped for s in self._schedulers)
                return started
        return None

    def _is_to_read(self) -> bool:
        """Whether reading comes first."""
        if self._since_read == 0:
            return False
        decoding = max(scheduler.num_decoding for scheduler in self._schedulers)
        waits = self._since_read < PATIENCE and 2 * decoding > self.config.max_rows
        return not waits or any(scheduler.fills_a_piece for scheduler in self._schedulers)

    def _start_piece(self) -> _Started | None:
        c = self.config
        pieces = [scheduler.plan_piece() for scheduler in self._schedulers]
        self._load()
        longest = max((piece.num_tokens for piece in pieces if piece), default=0)
        if not longest:
            return None
        tokens = next(size for size in c.piece_sizes if size >= longest)
        arrays = piece_arrays(pieces, c.page_size, tokens, c.piece_rows, c.max_rows)
        self.counts.read_tokens += sum(piece.num_tokens for piece in pieces if piece)
        self.counts.read_room += tokens * len(pieces)
        prompts = [
            told for d, piece in enumerate(pieces) if piece for told in self._to_tell(d, piece)
        ]
        self._state, drawn, of_prompts = read_piece(
            self._weights, self._state, placed(self.mesh, arrays), tells_prompt=bool(prompts)
        )
        answers = self._in_order([p.drawing if p else [] for p in pieces], c.piece_rows)
        return _Started(answers, drawn, prompts, of_prompts)

    def _to_tell(self, group: int, piece: Piece) -> Iterator[tuple[Answer, int, int, int]]:
        """Which tokens of a piece are of prompts whose log-probabilities are wanted."""
        at = 0
        for segment in piece.segments:
            row = segment.owner
            if isinstance(row, Row) and row.request.config.prompt_logprobs:
                count = min(segment.count, row.prompt_tokens - 1 - segment.start)
                if count > 0:
                    yield self._answers[row], at, segment.start, count
            at += segment.count

    def _start_decode(self) -> _Started | None:
        c = self.config
        steps = [scheduler.plan_decode() for scheduler in self._schedulers]
        most = max((len(step.rows) for step in steps if step), default=0)
        if not most:
            return None
        rows = next(size for size in c.row_sizes if size >= most)
        arrays = decode_arrays(steps, c.page_size, rows, c.max_rows)
        self.counts.decoded_rows += (together := sum(len(step.rows) for step in steps if step))
        self.counts.most_rows = max(self.counts.most_rows, together)
        self.counts.decoded_room += rows * len(steps)
        self._state, drawn = decode(self._weights, self._state, placed(self.mesh, arrays))
        return _Started(self._in_order([step.rows if step else [] for step in steps], rows), drawn)

    def _in_order(self, rows: Sequence[Sequence[Row]], size: int) -> list[Answer | None]:
        """The answer at each place of a step's results, None where there is none."""
        places: list[Any] = [None] * (len(rows) * size)
        for d, some in enumerate(rows):
            places[d * size : d * size + len(some)] = [self._answers[row] for row in some]
        return places

    def _load(self) -> None:
        """Loads the slots that rows were admitted for."""
        loads = [
            (d, s) for d, scheduler in enumerate(self._schedulers) for s in scheduler.take_loads()
        ]
        for d, span in loads:
            assert span.source is not None
            kv = span.source()
            n = -(-kv.k.shape[1] // self.config.page_size)
            pages = np.zeros((len(self._schedulers), n), np.int32)
            pages[d, : len(span.pages)] = span.pages
            self._state = load_slots(self._state, kv, place(self.mesh, pages, P(DATA, None)))

    def _collect(self, step: _Started) -> None:
        """Waits for the results of a step, and takes its tokens."""
        answers, drawn = step.answers, step.drawn
        if step.of_prompts is not None:
            self._collect_prompts(step.prompts, step.of_prompts)
        tokens, logprobs = np.asarray(drawn.token).tolist(), np.asarray(drawn.logprob).tolist()
        top: Any = None
        for i, answer in enumerate(answers):
            if answer is None:
                continue
            wanted = answer.request.config.top_logprobs
            if wanted and top is None:
                top = np.asarray(drawn.top_ids), np.asarray(drawn.top_logprobs)
            self._schedulers[answer.group].know(answer.row, tokens[i])
            if answer.row.is_over:
                continue
            answer.token_ids.append(tokens[i])
            answer.logprobs.append(logprobs[i])
            if wanted:
                ids, values = (x[i, :wanted].tolist() for x in top)
                answer.top_logprobs.append(dict(zip(ids, values, strict=True)))
            self._look(answer)

    def _collect_prompts(self, prompts: Sequence[tuple[Answer, int, int, int]], told: Told) -> None:
        """Takes what a step tells of prompts; a row that is read again tells nothing new."""
        _, logprobs, top_ids, top = (in_order(x, len(self._schedulers)) for x in told)
        for answer, at, start, count in prompts:
            wanted = answer.request.config.top_logprobs
            for i in range(len(answer.prompt_logprobs), start + count):
                place = answer.group, at + i - start
                answer.prompt_logprobs.append(float(logprobs[place]))
                if wanted:
                    ids, values = (x[place][:wanted].tolist() for x in (top_ids, top))
                    answer.prompt_top_logprobs.append(dict(zip(ids, values, strict=True)))

    def _look(self, answer: Answer) -> None:
        """Ends an answer that is at its end."""
        config, ids = answer.request.config, answer.token_ids
        ended = ids[-1] in config.stop_ids or len(ids) >= config.max_new_tokens
        if ended or (config.looks_at_text and len(ids) % LOOK_TOKENS == 0):
            found = so_far(self.tokenizer, answer)
            if found.finish_reason:
                answer.generation = found
                self._end(answer)

    def _end(self, answer: Answer) -> None:
        row, scheduler = answer.row, self._schedulers[answer.group]
        if row.is_over or row not in self._answers:
            return
        scheduler.finish(row)
        del self._answers[row]
        if answer.generation is None:
            answer.generation = dataclasses.replace(
                so_far(self.tokenizer, answer), finish_reason="cancelled"
            )
        for span in row.path:
            if not span.is_kept and not span.followers:
                scheduler.forget(span)
