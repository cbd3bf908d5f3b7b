"""The batched engine: requests from any thread, one llama.cpp context, one thread that runs it."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from finesteer_local.errors import EngineClosedError, EngineError, QueueFullError, StalledError, SteeringError, one_line
from finesteer_local.runtime.batch.answer import AnswerStream
from finesteer_local.runtime.batch.context import OwnStream, Streams
from finesteer_local.runtime.batch.pieces import Sizes
from finesteer_local.runtime.batch.request import Request
from finesteer_local.runtime.batch.sampler import Sampler
from finesteer_local.runtime.batch.scheduler import Scheduler
from finesteer_local.runtime.batch.sequence import Waiting
from finesteer_local.runtime.batch.watchdog import Watchdog
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.runtime.threads import release_workers

log = logging.getLogger("finesteer_local")

MAX_QUEUE = 256
STALL_SECONDS = 300.0
_LOOK = 0.25  # seconds
ON_GPU = Sizes(chunk=512, whole=512, between=512)
PREFIX_BYTES = 16 << 20


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    running: int  # requests that have a place
    waiting: int  # requests that have none yet
    places: int


class BatchEngine:
    """Answers many requests at once, each with its own profiles, strength, scope, sampling, stop words and grammar.

    Requests join and leave while others run. Each prompt is decided in the pass that reads it; an answer is steered
    by its own vector, and what runs beside it changes nothing. `submit` may be called from any thread and returns at
    once; the events are read from what it returns. Use it with `with`, or `close` it.

    Args:
        llama: the loaded model; its tokenizer, template and settings are used, its own context is not. Meanwhile it
            must not be closed.
        n_parallel: requests that run at the same time, at most 256.
        n_ctx: tokens of a request with its answer; None is the length of `llama`'s own context. Keys and values take
            `n_parallel` times that.
        max_queue: requests that wait for a place.
        sizes: how prompts are cut into pieces; None takes short ones on the CPU, longer ones (`ON_GPU`) on a GPU.
        prefix_bytes: memory for beginnings that prompts share, such as a system prompt.
        own_context: compute in `llama`'s own context, which takes no further memory: one request at a time
            (`n_parallel` and `n_ctx` do not count), and a prompt that goes on from the last one and its answer reads
            only what is new. `llama` has to have the profiles that requests use, and must not compute meanwhile.
        stall_seconds: where nothing moves for so long, neither a piece of a prompt nor a token, all requests end with a
            `StalledError`, and new ones are refused until something moves again.

    Raises:
        ModelError: llama.cpp cannot make such a context.
    """

    def __init__(
        self,
        llama: SteeredLlama,
        *,
        n_parallel: int = 8,
        n_ctx: int | None = None,
        max_queue: int = MAX_QUEUE,
        sizes: Sizes | None = None,
        prefix_bytes: int = PREFIX_BYTES,
        native_tap: bool = True,
        own_context: bool = False,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        if not 1 <= n_parallel <= 256:
            raise ValueError(f"{n_parallel} requests at a time; llama.cpp takes 1 to 256")
        self.llama, self._max_queue, self._own_context = llama, max_queue, own_context
        self._unsteerable: SteeringError | None = None
        sizes = sizes or default_sizes(llama)
        if own_context:
            n_parallel, prefix_bytes = 1, 0
            self._streams: Streams = OwnStream(llama)
        else:
            try:
                llama.check_steerable()
            except SteeringError as error:
                self._unsteerable = error  # requests without profiles work all the same
            self._streams = Streams(
                llama,
                n_sequences=n_parallel,
                n_ctx=n_ctx or llama.n_ctx(),
                n_ubatch=max(sizes.whole, sizes.chunk, n_parallel) + 1,
                native_tap=native_tap,
            )
        release_workers()  # of the thread that opened the model; from here on the engine's own computes
        self._scheduler = Scheduler(
            llama, self._streams, n_slots=n_parallel, sizes=sizes, prefix_bytes=prefix_bytes, goes_on=own_context
        )
        self._inbox: deque[Waiting] = deque()
        self._failure: EngineError | None = None
        self._watchdog = Watchdog(stall_seconds, self._on_stall)
        self._scheduler.on_move = self._watchdog.move
        self._changed = threading.Condition()
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._run, name="finesteer-batch", daemon=True)
        self._thread.start()

    @property
    def n_ctx(self) -> int:
        """Tokens of one request with its answer."""
        return self._streams.n_ctx

    @property
    def native_tap(self) -> bool:
        return self._streams.tap.native

    @property
    def load(self) -> Load:
        """How busy the engine is now."""
        with self._changed:
            running, waiting = len(self._scheduler.running), len(self._scheduler.queue) + len(self._inbox)
            return Load(running, waiting, len(self._scheduler.slots))

    @property
    def failure(self) -> EngineError | None:
        """Why requests are refused: a step failed, or nothing moves."""
        if self._failure is None and self._watchdog.stalled:
            return StalledError("the model's engine does not move; restart it")
        return self._failure

    def submit(self, request: Request) -> AnswerStream:
        """Accept a request; its events come as they happen.

        Raises:
            PromptError, ProfileError, SteeringError: the request cannot be served, see `Request.check`.
            QueueFullError: `max_queue` requests are waiting already.
            EngineClosedError: it is being closed.
            EngineError: the engine has failed, or does not move.
        """
        if self.failure is not None:
            raise self.failure
        request.check(self.llama, self.n_ctx)
        if request.steer and self._unsteerable is not None:
            raise self._unsteerable
        for steer in request.steer:
            self.llama.check_steerable(steer.profile.used_layers)  # found out above: nothing is computed here
        if self._own_context:
            release_workers()  # of this thread, where it has tried profiles since
        seed = secrets.randbits(32) if request.sampling.seed is None else request.sampling.seed
        sampler = Sampler(self.llama, request.sampling, seed)
        stream = AnswerStream(self._notify)
        with self._changed:
            load = self.load
            if self._closing or self._draining or self.failure:
                sampler.close()
                raise self.failure or EngineClosedError("the model is being closed; no further requests are taken")
            if load.running + load.waiting >= load.places + self._max_queue:
                sampler.close()
                raise QueueFullError(f"{load.waiting} requests are waiting already; try again later")
            self._inbox.append(Waiting(request, stream, sampler, seed))
            self._changed.notify_all()
        return stream

    def close(self, *, drain: bool = False) -> None:
        """Stop, and free the context. With `drain`, running and waiting requests are answered first.

        Raises:
            StalledError: it does not move; its thread still holds the model, which must not be closed.
        """
        with self._changed:
            self._draining, self._closing = True, self._closing or not drain
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(_LOOK)
            if self._watchdog.stalled and self._thread.is_alive():
                raise StalledError("the model's engine does not move, and cannot be closed")
        self._watchdog.close()

    def __enter__(self) -> BatchEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        error: BaseException = EngineClosedError("the model was closed before the answer was finished")
        try:
            while self._wait():
                self._watchdog.begin()
                self._scheduler.step()
        except BaseException as unexpected:
            log.error("the engine failed", exc_info=unexpected)  # nobody else would see it
            what = one_line(f"{type(unexpected).__name__}: {unexpected}")
            error = self._failure = EngineError(f"the model's engine failed and has stopped ({what}); restart it")
        finally:
            self._watchdog.rest()
            with self._changed:
                self._closing = True
                self._take_inbox()
                self._scheduler.abandon(error)
            self._streams.close()

    def _on_stall(self) -> None:
        """End all requests, from the watchdog's thread; the engine's own forgets them once it moves."""
        log.error("the engine has not moved for a while")
        error = StalledError("the model's engine does not move; the answer was given up")
        with self._changed:
            streams = [waiting.stream for waiting in (*self._inbox, *self._scheduler.queue)]
            streams += [sequence.stream for sequence in self._scheduler.running]
        for stream in streams:
            stream.cancelled = True
            stream.put(error)

    def _wait(self) -> bool:
        """Wait for something to do; False once there is nothing more to come."""
        with self._changed:
            while not self._closing:
                self._take_inbox()
                if not self._scheduler.idle:
                    return True
                if self._draining:
                    return False
                self._watchdog.rest()
                release_workers()  # another thread may compute while there is nothing to do here
                self._changed.wait()
            return False

    def _take_inbox(self) -> None:
        self._scheduler.queue.extend(self._inbox)
        self._inbox.clear()


def default_sizes(llama: SteeredLlama) -> Sizes:
    """Short pieces on the CPU, longer ones on a GPU."""
    return ON_GPU if llama.offloads else Sizes()
