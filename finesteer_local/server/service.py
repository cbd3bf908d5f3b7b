"""The one model that a server has: opened in the background, asked by many requests, closed when they are answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from finesteer_local.errors import EngineError, StalledError
from finesteer_local.identity import read_model_identity
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.batch import AnswerStream, BatchEngine, Request
from finesteer_local.runtime.load import DEFAULT_CONTEXT
from finesteer_local.runtime.rpc import end_when_lost
from finesteer_local.server.errors import ApiError
from finesteer_local.server.metrics import Metrics
from finesteer_local.server.policy import Policy, Shelf
from finesteer_local.server.settings import ServerSettings

T = TypeVar("T")

LONG = 1 << 15
"""Bytes of a request; preparing more may take a second, and preparing 1 MiB of text does."""

_LOOK = 0.25  # seconds
_OWN_CONTEXT = 512  # tokens of the model's own context, which only the check for steerability uses


@dataclass(frozen=True)
class Model:
    """What is there once the model is loaded."""

    llama: SteeredLlama
    engine: BatchEngine
    policy: Policy


class _Lane:
    """A thread that prepares requests one after the other."""

    def __init__(self, name: str) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"finesteer-{name}")
        self._since: float | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        def timed() -> T:
            self._since = time.monotonic()
            try:
                return work()
            finally:
                self._since = None

        return self._worker.submit(timed)

    @property
    def seconds(self) -> float:
        """How long it has been at the request that it has."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def end(self) -> Future[None]:
        """Take no more; what is returned is done once all is.

        Raises:
            RuntimeError: it was ended before.
        """
        last = self._worker.submit(lambda: None)
        self._worker.shutdown(wait=False)
        return last


class Service:
    """Loads the model, and gives requests to it.

    Rendering a chat, making tokens and reading profiles take a while, and happen beside the event loop: in one thread
    for the requests of most people, and in another for long ones, which nobody else shall wait for.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self._model: Model | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._short, self._long = _Lane("prepare"), _Lane("prepare-long")
        self._compiler = ThreadPoolExecutor(2, thread_name_prefix="finesteer-compile")
        metrics.watch(self._gauges)

    # --- the model

    def begin(self) -> None:
        """Start loading the model."""
        # A daemon: Ctrl-C while a large model loads need not wait for it.
        threading.Thread(target=self._load, name="finesteer-load", daemon=True).start()

    def _load(self) -> None:
        try:
            model = open_service_model(self.settings)
            with self._lock:
                wanted = not self._stopping
                if wanted:
                    self._model = model
            if wanted:
                self.on_ready()
                self._watch(model)
            else:
                _close(model, drain=False)
        except BaseException as error:
            self.failure = error
            self.on_failure()

    def _watch(self, model: Model) -> None:
        """Give up once the engine has failed, or has been stuck for twice the time that is allowed."""
        stuck = 0.0
        while self._model is model:
            time.sleep(_LOOK)
            trouble = self.trouble
            stuck = stuck + _LOOK if isinstance(trouble, StalledError) else 0.0
            if trouble is not None and (stuck == 0 or stuck > self.settings.limits.stall):
                self.failure = trouble
                self.on_failure()
                return

    @property
    def trouble(self) -> EngineError | None:
        """Why no request can be answered though the model is loaded."""
        if isinstance(self.failure, EngineError):
            return self.failure  # still while the server ends
        model, seconds = self._model, max(self._short.seconds, self._long.seconds)
        if model is not None and model.engine.failure is not None:
            return model.engine.failure
        if seconds > self.settings.limits.stall:
            return StalledError("a request has taken too long to prepare, and others wait for it; restart the server")
        return None

    @property
    def is_ready(self) -> bool:
        return self._model is not None and not self._stopping and self.trouble is None

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    @property
    def model(self) -> Model:
        """The loaded model.

        Raises:
            ApiError: it is still being loaded, or the server is stopping.
            EngineError: it has failed, or is stuck.
        """
        if (trouble := self.trouble) is not None:
            raise trouble
        if self._stopping:
            raise ApiError(503, "the server is stopping; no further requests are taken", code="stopping")
        if self._model is None:
            raise ApiError(503, "the model is being loaded; try again in a moment", code="loading")
        return self._model

    def stop(self, *, drain: bool = True) -> None:
        """Answer what was accepted, unless `drain` is false, then close the model. Once more does nothing.

        What is stuck is left as it is, and `failure` says so.
        """
        with self._lock:
            self._stopping, model, self._model = True, self._model, None
        try:
            self._end_preparing()
            if model is not None:
                _close(model, drain=drain)
        except EngineError as error:
            self.failure = error

    def _end_preparing(self) -> None:
        with suppress(RuntimeError):  # it was ended before
            ends = [self._short.end(), self._long.end()]
            self._compiler.shutdown(wait=False, cancel_futures=True)
            while not all(end.done() for end in ends):
                time.sleep(_LOOK / 10)
                if (trouble := self.trouble) is not None:
                    raise trouble

    # --- requests

    async def prepare(self, work: Callable[[Model], T], size: int = 0) -> T:
        """Do what takes a while; `size` is that of the request, in bytes."""
        model = self.model
        lane = self._short if size <= LONG else self._long
        done = asyncio.wrap_future(lane.submit(lambda: work(model)))
        try:
            return await asyncio.wait_for(done, self.settings.limits.stall + _LOOK)
        except asyncio.TimeoutError as error:
            raise self.trouble or StalledError("the request waited too long to be prepared; try again") from error

    async def compile(self, work: Callable[[Model], T]) -> T:
        """Do what may take seconds, and is made for several threads, where no other request waits for it."""
        model = self.model
        done = asyncio.get_running_loop().run_in_executor(self._compiler, work, model)
        try:
            return await asyncio.wait_for(done, self.settings.limits.seconds)
        except asyncio.TimeoutError as error:
            raise ApiError(503, "the request's time was up before the answer began", code="timeout") from error

    def submit(self, requests: Sequence[Request]) -> list[AnswerStream]:
        """Give requests to the engine: all of them, or none."""
        engine, streams = self.model.engine, list[AnswerStream]()
        try:
            for request in requests:
                streams.append(engine.submit(request))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def check_name(self, name: str | None) -> None:
        """Raise `ApiError` where a client means another model than this one."""
        if name not in (None, "", self.settings.name, f"{self.settings.name}:latest"):
            raise ApiError(
                404,
                f"this server has the model {self.settings.name!r}, no other",
                param="model",
                code="model_not_found",
            )

    def _gauges(self) -> dict[str, float]:
        model = self._model
        if model is None:
            return {"model_loaded": 0}
        load = model.engine.load
        return {
            "model_loaded": 1,
            "requests_running": load.running,
            "requests_waiting": load.waiting,
            "places": load.places,
        }


def open_service_model(settings: ServerSettings) -> Model:
    """Open the model, its engine and its steering.

    Raises:
        FineSteerError: the model cannot be loaded, or the default profiles cannot steer it.
    """
    identity = settings.identity or read_model_identity(settings.path)
    n_ctx = settings.ctx or min(identity.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    llama = open_model(
        settings.path,
        profiles=settings.profiles,  # checks them
        policy=settings.kinds,
        on_answer=settings.on_answer,
        look_ahead=settings.look_ahead,
        n_ctx=min(n_ctx, _OWN_CONTEXT),
        n_threads=settings.threads,
        n_gpu_layers=settings.gpu_layers,
        rpc=settings.rpc,
        identity=identity,
    )
    if settings.rpc:
        end_when_lost()  # there is nothing left to answer with; whoever supervises the server starts it again
    try:
        limits = settings.limits
        engine = BatchEngine(
            llama, n_parallel=limits.parallel, n_ctx=n_ctx, max_queue=limits.queue, stall_seconds=limits.stall
        )
    except BaseException:
        llama.close()
        raise
    shelf = Shelf(identity, settings.profiles)
    policy = Policy(
        shelf,
        settings.profiles,
        settings.required,
        settings.strength,
        settings.scope,
        settings.kinds,
        settings.on_answer,
    )
    policy.skip_thinking = settings.skip_thinking
    return Model(llama, engine, policy)


def _close(model: Model, *, drain: bool) -> None:
    model.engine.close(drain=drain)
    model.llama.close()
