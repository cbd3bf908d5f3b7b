"""The answer to a request: a stream of events that any thread, or an event loop, reads as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass

from finesteer_local.steering import Decision

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"

_LOOK = 0.25  # seconds after which a waiting thread looks for signals: not every system wakes it for one


@dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability, with those of the likeliest others; `text` may be part of a letter."""

    token: int
    text: bytes
    logprob: float | None  # natural logarithm; None for a prompt's first token
    top: tuple[tuple[int, bytes, float], ...]  # the likeliest tokens, likeliest first


@dataclass(frozen=True)
class Decided:
    """The first event: what the profiles decided, in the request's order, once the prompt is read."""

    decisions: tuple[Decision, ...]
    n_prompt: int  # tokens
    n_cached: int  # of these, tokens that did not have to be read
    prompt_scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A piece of the answer. Text comes in whole letters, and only once it cannot be part of a stop word."""

    text: str
    scores: tuple[TokenScore, ...] = ()  # of the tokens read since the last piece


@dataclass(frozen=True)
class Showed:
    """A gate on the answer has opened: what the profiles say now, in the request's order."""

    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Finished:
    """The last event."""

    reason: str  # STOP, LENGTH, CANCELLED, or `CONTENT_FILTER` (rewindable)
    n_prompt: int  # tokens
    n_answer: int  # tokens; of a request that checks, those that were read of what was answered
    n_cached: int  # of the prompt's tokens, those that did not have to be read
    seed: int
    queue_seconds: float  # from submission until a place was free
    prompt_seconds: float  # until the first token
    answer_seconds: float  # from the first token on
    decisions: tuple[Decision, ...] = ()  # as of `Decided`, with what was found in the answer


Event = Decided | Piece | Showed | Finished


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    decisions: tuple[Decision, ...]
    scores: tuple[TokenScore, ...]
    prompt_scores: tuple[TokenScore, ...]
    finished: Finished

    @classmethod
    def of(cls, events: Iterable[Event]) -> Answer:
        """All events of a request as one."""
        decided = Decided((), 0, 0)
        pieces: list[Piece] = []
        for event in events:
            if isinstance(event, Decided):
                decided = event
            elif isinstance(event, Piece):
                pieces.append(event)
            elif isinstance(event, Finished):
                text = "".join(piece.text for piece in pieces)
                scores = tuple(score for piece in pieces for score in piece.scores)
                return cls(text, event.decisions or decided.decisions, scores, decided.prompt_scores, event)
        raise RuntimeError("the stream was read before")


class AnswerStream:
    """The events of one request, in order: `Decided`, `Piece`s, perhaps a `Showed` among them, `Finished`.

    Read it once, with `for` or `async for`.

    An error of this request is raised where its events are read. Leaving early does not stop the request: `cancel`.
    """

    def __init__(self, on_cancel: Callable[[], None] = lambda: None) -> None:
        self._events: deque[Event | BaseException] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], None] | None = None  # of the event loop that waits
        self._on_cancel = on_cancel
        self._ended = False
        self.cancelled = False

    def cancel(self) -> None:
        """Stop the request; its place is free before the next token. Safe from any thread, and after the end."""
        self.cancelled = True
        self._on_cancel()

    @property
    def ended(self) -> bool:
        """Whether the last event is there."""
        return self._ended

    def result(self) -> Answer:
        """Wait for the end and return all of it; raises the request's error."""
        return Answer.of(self)

    def put(self, event: Event | BaseException) -> None:
        """For the engine: add an event, or the error that ends the stream."""
        with self._changed:
            if self._ended:
                return  # given up from another thread
            self._events.append(event)
            self._ended = self._ended or isinstance(event, Finished | BaseException)
            self._changed.notify_all()
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def _take(self) -> Event | None:
        event = self._events.popleft() if self._events else None
        if isinstance(event, BaseException):
            raise event
        return event

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                while not self._events and not self._ended:
                    self._changed.wait(_LOOK)
                event = self._take()
            if event is None:
                return
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                event = self._take()
                if event is None:
                    if self._ended:
                        return
                    ready = asyncio.Event()
                    self._wake = lambda ready=ready: _call_soon(loop, ready.set)
            if event is None:
                await ready.wait()
            else:
                yield event


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed while the request ran: nobody waits any more
        loop.call_soon_threadsafe(function)
