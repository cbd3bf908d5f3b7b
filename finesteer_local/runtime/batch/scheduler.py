"""What happens in which order: places for requests, one token for every answer, a piece of a prompt in between."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import pairwise

from finesteer_local.errors import PromptError
from finesteer_local.runtime.answer_watch import StatesOf
from finesteer_local.runtime.batch.answer import (
    CANCELLED,
    LENGTH,
    STOP,
    Decided,
    Finished,
    Piece,
    Showed,
    TokenScore,
)
from finesteer_local.runtime.batch.context import Streams, Token
from finesteer_local.runtime.batch.pieces import Sizes, common_cut
from finesteer_local.runtime.batch.prefix import PrefixStore
from finesteer_local.runtime.batch.score import token_score
from finesteer_local.runtime.batch.sequence import Sequence, Waiting
from finesteer_local.runtime.control import Vectors, same_vectors
from finesteer_local.runtime.prompt import token_text
from finesteer_local.runtime.rewindable import CONTENT_FILTER
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.runtime.steered_request import n_common
from finesteer_local.runtime.tap import Addition, Array
from finesteer_local.runtime.tokens import ends_answer, vocab_of
from finesteer_local.steering import REWIND
from finesteer_local.steering import STOP as STOP_ANSWER

STEADY = 32
"""After so many steps in which all answers were steered alike, the control vector takes over from the tap."""

_MOVE, _STEP = 4, 2
"""Moving an answer costs about so many tokens of a prompt, and saves so many with each of its further tokens."""

_RETURNS = 0.25  # how likely a later request begins with what the last one left in its place
_OLDEST_EVERY = 4
"""At least every fourth piece is one of the prompt that waits longest; the others are of the one nearest its end."""


@dataclass
class Slot:
    """A place for a sequence, and what the last one left there."""

    number: int
    running: Sequence | None = None
    tokens: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    last_used: int = 0  # count of admissions
    spoilt: bool = False  # its cells hold values that are not finite


class Scheduler:
    """Runs requests in the slots of `streams`. Only one thread may use it; `BatchEngine` is for several.

    An error of one request ends that request; the others do not notice.

    Args:
        goes_on: what the last request left in its place, its answer included, serves a prompt that begins with it, up
            to its last user message: as in llama.cpp, where it may round otherwise than reading it anew.
    """

    def __init__(
        self,
        llama: SteeredLlama,
        streams: Streams,
        *,
        n_slots: int,
        sizes: Sizes,
        prefix_bytes: int,
        goes_on: bool = False,
    ) -> None:
        self.llama, self.streams, self.sizes, self._goes_on = llama, streams, sizes, goes_on
        self.slots = [Slot(number) for number in range(n_slots)]
        self.prefixes = PrefixStore(prefix_bytes if streams.restores_exactly else 0)
        self.queue: deque[Waiting] = deque()
        self._moves, self._vocab = streams.can_move, vocab_of(llama)
        self.on_move: Callable[[], None] = lambda: None  # called whenever something was read or answered
        self._pieces: dict[int, bytes] = {}  # token -> its text
        self._admissions = self._passed_over = 0
        self._common: Vectors = {}  # what all answers were steered by in the last `_steady` steps
        self._steady = 0

    @property
    def running(self) -> list[Sequence]:
        """The requests that have a place, by its number."""
        return [slot.running for slot in self.slots if slot.running]

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    def step(self) -> None:
        """One token for every answer, then about as much of prompts as may come in between."""
        self._admit()
        self._close_gaps()
        self._decode([sequence for sequence in self.running if sequence.answering])
        budget = self.sizes.between
        while budget > 0 and (reading := self._next_to_read()):
            start, stop = reading.piece()
            self._read(reading, start, stop)
            budget -= stop - start
            self._admit()

    def abandon(self, error: BaseException) -> None:
        """End every request with `error`."""
        for sequence in self.running:
            self._fail(sequence, error)
        while self.queue:
            waiting = self.queue.popleft()
            waiting.sampler.close()
            waiting.stream.put(error)

    # --- places

    def _admit(self) -> None:
        for sequence in self.running:
            if sequence.stream.cancelled:
                self._finish(sequence, CANCELLED)
        for waiting in [waiting for waiting in self.queue if waiting.stream.cancelled]:
            self.queue.remove(waiting)
            _never_ran(waiting)
        self._renew()
        while self.queue and (free := [slot for slot in self.slots if not slot.running and not slot.spoilt]):
            if 2 * sum(slot.spoilt for slot in self.slots) > len(self.slots):
                return  # let the others end: then all places can be renewed
            sequence = Sequence(self.queue.popleft(), free[0].number, self.streams.n_layer, self.sizes)
            try:
                self._place(sequence, free)
            except Exception as error:
                sequence.sampler.close()
                sequence.stream.put(error)

    def _renew(self) -> None:
        """Overwrite spoilt places; llama.cpp can do that only for all sequences at once."""
        if any(slot.spoilt for slot in self.slots) and not self.running:
            self.streams.forget()
            self.slots = [Slot(slot.number) for slot in self.slots]

    def _place(self, sequence: Sequence, free: Items[Slot]) -> None:
        prompt, limit = sequence.tokens, sequence.may_reuse()
        ends = [*(end for end in sequence.ends if end <= limit), sequence.n_prompt]
        kept = self.prefixes.find(prompt, ends, limit)
        own = {slot.number: self._reusable(slot, sequence, ends, limit) for slot in free}

        def worth(slot: Slot) -> tuple[float, int]:
            n_reused = max(own[slot.number], len(kept.tokens) if kept else 0)
            n_lost = len(slot.tokens) - own[slot.number]
            age = (self._admissions - slot.last_used) / len(self.slots)
            return n_reused - n_lost * _RETURNS / (1 + age), -slot.number

        slot = max(free, key=worth)
        self._admissions += 1
        slot.last_used, slot.running, sequence.slot = self._admissions, sequence, slot.number
        slot.tokens, slot.cuts = [], []
        n_own = own[slot.number]
        if kept and len(kept.tokens) > n_own and self.streams.load(slot.number, kept.data):
            sequence.begin(len(kept.tokens))
        else:
            sequence.begin(self.streams.keep(slot.number, n_own))

    def _reusable(self, slot: Slot, sequence: Sequence, ends: Items[int], limit: int) -> int:
        """How many tokens that lie in `slot` serve `sequence`."""
        if self._goes_on:
            return min(n_common(slot.tokens, sequence.tokens), limit, sequence.turn)
        return common_cut(slot.tokens, slot.cuts, sequence.tokens, ends)

    def _close_gaps(self) -> None:
        """Move answers into free places next to others, so that one `llama_decode` serves them all.

        llama.cpp computes only neighbours in one graph, and reads all weights for every graph: once answers between
        them have ended, those that go on would pay for that with each token.
        """
        answering = [sequence for sequence in self.running if sequence.answering]
        while len(answering) > 1 and self._moves and (step := self._next_move(answering)):
            sequence, target = step
            source = self.slots[sequence.slot]
            self.streams.move(source.number, target.number)
            source.running, target.running, sequence.slot = None, sequence, target.number
            source.tokens, source.cuts = sequence.retained()  # still there
            target.tokens, target.cuts, target.last_used = [], [], source.last_used
            answering.sort(key=lambda sequence: sequence.slot)

    def _next_move(self, answering: Items[Sequence]) -> tuple[Sequence, Slot] | None:
        """The outermost answer, and the free place that brings the answers together best; None where nothing gains."""
        places = [sequence.slot for sequence in answering]
        best, found = (_n_runs(places), places[-1] - places[0]), None
        if best[0] == 1:
            return None
        for sequence in (answering[-1], answering[0]):
            gain = _STEP * (self._longest(sequence) - sequence.n_answer)
            for slot in self.slots:
                if slot.running or slot.spoilt or gain < _MOVE + _RETURNS * len(slot.tokens):
                    continue
                after = sorted([*(place for place in places if place != sequence.slot), slot.number])
                worth = _n_runs(after), after[-1] - after[0]
                if worth < best:
                    best, found = worth, (sequence, slot)
        return found

    def _release(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        slot = self.slots[sequence.slot]
        slot.running, slot.spoilt = None, spoilt
        slot.tokens, slot.cuts = ([], []) if spoilt else sequence.retained()
        if self._goes_on and not spoilt:
            slot.tokens = sequence.unsteered()
        sequence.sampler.close()

    def _finish(self, sequence: Sequence, reason: str, score: TokenScore | None = None) -> None:
        """End a request; `score` is that of the token that ends its answer."""
        now = time.perf_counter()
        first = sequence.first_token or now
        if piece := sequence.shown.last(score):
            sequence.stream.put(piece)
        self._release(sequence)
        sequence.stream.put(
            Finished(
                reason,
                sequence.n_prompt,
                sequence.n_answer,
                sequence.n_cached,
                sequence.waiting.seed,
                queue_seconds=sequence.started - sequence.waiting.submitted,
                prompt_seconds=first - sequence.started,
                answer_seconds=now - first,
                decisions=sequence.decisions,
            )
        )

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        # What a request asked for cannot spoil its place; any other error may tell of values that are not finite.
        self._release(sequence, spoilt=not isinstance(error, PromptError))
        sequence.stream.put(error)

    # --- prompts

    def _next_to_read(self) -> Sequence | None:
        reading = [sequence for sequence in self.running if not sequence.answering]
        if not reading:
            return None
        oldest = min(reading, key=lambda sequence: sequence.started)
        nearest = min(reading, key=lambda sequence: (sequence.n_left, sequence.started))
        # Only pieces that passed the oldest over count: a short prompt that comes while a long one is read is next.
        self._passed_over = 0 if nearest is oldest else (self._passed_over + 1) % _OLDEST_EVERY
        return nearest if self._passed_over else oldest

    def _read(self, sequence: Sequence, start: int, stop: int) -> None:
        try:
            self._read_piece(sequence, start, stop)
        except Exception as error:
            self._fail(sequence, error)
        finally:
            self.streams.tap.disarm()

    def _read_piece(self, sequence: Sequence, start: int, stop: int) -> None:
        request, last = sequence.request, stop == sequence.n_prompt
        second, given = sequence.reads_again, sequence.reads_given
        self._steady = 0
        self.streams.control.set({})
        wants_all = sequence.scores_prompt
        if second:
            self.streams.tap.add(sequence.additions(start, stop, all_rows=wants_all))
        elif handlers := sequence.given.handlers if given else sequence.handlers:
            self.streams.tap.arm(handlers)
        self.streams.decode(
            [
                Token(sequence.tokens[i], i, sequence.slot, wants_all or i == sequence.end - 1)
                for i in range(start, stop)
            ]
        )
        self.on_move()
        if sequence.stream.cancelled:
            return  # nobody reads its events any more; `_admit` ends it
        again = None if second else sequence.read_again_from  # then the pass has ended early
        if wants_all and again is None:
            self._score_prompt(sequence, start, stop)
        first_reading_done = sequence.read(stop)
        if not last and stop == sequence.turn and sequence.clean[-1:] == [stop]:
            self.prefixes.offer(sequence.tokens[:stop], sequence.clean, lambda: self.streams.save(sequence.slot))
        if first_reading_done and again is not None:
            sequence.begin_again(self.streams.keep(sequence.slot, again))
        if first_reading_done and not wants_all:
            self._tell_decision(sequence)
        if sequence.answering:
            if wants_all:
                self._tell_decision(sequence)
            if request.max_tokens == 0:
                self._finish(sequence, LENGTH)
            elif sequence.words is not None:
                sequence.stream.put(Piece(sequence.words))
                self._finish(sequence, STOP)
            else:
                self._accept(sequence, stop - start - 1)
        elif first_reading_done and request.max_tokens == 0 and not (wants_all or sequence.reads_given):
            self._finish(sequence, LENGTH)

    def _tell_decision(self, sequence: Sequence) -> None:
        scores = tuple(score for _, score in sorted(sequence.prompt_scores.items()))
        sequence.stream.put(Decided(sequence.decisions, sequence.n_prompt, sequence.n_cached, scores))

    def _score_prompt(self, sequence: Sequence, start: int, stop: int) -> None:
        n_top = sequence.request.logprobs or 0
        if start == 0:
            first = sequence.tokens[0]
            sequence.prompt_scores[0] = token_score(first, None, 0, self._text)
        for i in range(start, min(stop, sequence.n_prompt - 1)):
            logits = self.streams.logits(i - start)
            sequence.prompt_scores[i + 1] = token_score(sequence.tokens[i + 1], logits, n_top, self._text)

    # --- answers

    def _decode(self, answering: list[Sequence]) -> None:
        if not answering:
            return
        uniform = self._uniform(answering)
        for run in _runs(answering):
            try:
                self._decode_run(run, uniform)
            except Exception as error:
                self._one_by_one(run, error)

    def _uniform(self, answering: list[Sequence]) -> bool:
        """Whether the control vector, which steers all sequences alike, does the steering of this step."""
        vectors = answering[0].vectors
        if not all(same_vectors(vectors, sequence.vectors) for sequence in answering[1:]):
            self._steady = 0
        elif not same_vectors(vectors, self._common):
            self._common, self._steady = vectors, 1
        else:
            self._steady += 1
        uniform = self._steady > STEADY
        self.streams.control.set(vectors if uniform else {})
        return uniform

    def _decode_run(self, run: Items[Sequence], uniform: bool) -> None:
        """Compute one token for each sequence of a run of neighbours."""
        additions: list[Addition] = []
        seen = StatesOf({layer for sequence in run for layer in sequence.answer_layers()})
        if not uniform:
            for row, sequence in enumerate(run):
                additions += [(layer, row, row + 1, vector) for layer, vector in sequence.vectors.items()]
        self.streams.tap.add(additions, seen.handlers)
        try:
            self.streams.decode([Token(s.tokens[-1], len(s.tokens) - 1, s.slot, True) for s in run])
        finally:
            self.streams.tap.disarm()
        states = seen.rows
        for row, sequence in enumerate(run):
            sequence.n_past = len(sequence.tokens)
            try:
                if self._goes_on_after(sequence, {layer: rows[row : row + 1] for layer, rows in states.items()}):
                    self._accept(sequence, row)
            except Exception as error:
                self._fail(sequence, error)

    def _one_by_one(self, run: Items[Sequence], error: Exception) -> None:
        """After an error that any of the sequences may have caused, let each go on alone."""
        if len(run) == 1:
            self._fail(run[0], error)
            return
        for sequence in run:
            n_past = len(sequence.tokens) - 1
            if self.streams.keep(sequence.slot, n_past) != n_past:
                self._fail(sequence, error)
                continue
            try:
                self._decode_run([sequence], uniform=False)
            except Exception as own:
                self._fail(sequence, own)

    def _goes_on_after(self, sequence: Sequence, states: Mapping[int, Array]) -> bool:
        """Let the profiles read the answer's last token; returns whether the next one may be chosen after it."""
        opening = sequence.answer_read(states)
        if opening is None:
            return True
        sequence.act(opening, at_least=sequence.shown.n_tokens)
        sequence.stream.put(Showed(sequence.decisions))
        if opening.action not in (REWIND, STOP_ANSWER):
            return True
        sequence.go_back(self._text)
        if opening.action == REWIND:
            sequence.begin_again(self.streams.keep(sequence.slot, sequence.plan[0].start))
        else:
            self._finish(sequence, CONTENT_FILTER)
        return False

    def _accept(self, sequence: Sequence, row: int) -> None:
        """Choose the next token from the logits of `row`, and add it to the stream of events."""
        request, logits = sequence.request, self.streams.logits(row)
        token = sequence.sampler.sample(logits)
        self.on_move()
        if sequence.first_token is None:
            sequence.first_token = time.perf_counter()
        ends = self._ends(token)
        # Who has the prompt scored counts on a score for the token after it, and cuts it off (vLLM, lm-eval).
        score = None
        if request.logprobs is not None and (not ends or request.prompt_logprobs):
            score = token_score(token, logits, request.logprobs, self._text)
        if ends:
            self._finish(sequence, STOP, score)
            return
        sequence.answer(token, token_text(self.llama))
        sequence.shown.add(self._text(token), score)
        if piece := sequence.shown.piece(0 if sequence.shown.stopped else sequence.n_held):
            sequence.stream.put(piece)
        if sequence.shown.stopped:
            self._finish(sequence, STOP)
        elif sequence.n_answer >= self._longest(sequence):
            self._finish(sequence, LENGTH)

    def _longest(self, sequence: Sequence) -> int:
        room = self.streams.n_ctx - sequence.n_prompt
        return room if sequence.request.max_tokens is None else min(sequence.request.max_tokens, room)

    def _ends(self, token: int) -> bool:
        return ends_answer(self._vocab, token)

    def _text(self, token: int) -> bytes:
        if token not in self._pieces:
            self._pieces[token] = self.llama.detokenize([token])
        return self._pieces[token]


def _runs(sequences: Items[Sequence]) -> Iterator[list[Sequence]]:
    """Sequences whose numbers follow each other: llama.cpp computes only such ones in one graph."""
    run: list[Sequence] = []
    for sequence in sequences:
        if run and sequence.slot != run[-1].slot + 1:
            yield run
            run = []
        run.append(sequence)
    yield run


def _n_runs(places: Items[int]) -> int:
    """The number of runs of neighbours in ascending numbers."""
    return 1 + sum(b != a + 1 for a, b in pairwise(places))


def _never_ran(waiting: Waiting) -> None:
    waiting.sampler.close()
    seconds = time.perf_counter() - waiting.submitted
    waiting.stream.put(Finished(CANCELLED, len(waiting.request.prompt), 0, 0, waiting.seed, seconds, 0.0, 0.0))
