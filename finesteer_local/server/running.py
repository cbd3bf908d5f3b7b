"""The streams of one HTTP request, cancelled together: at its end, when its client goes, when its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from finesteer_local.errors import PromptError
from finesteer_local.runtime.batch import WHOLE, Answer, AnswerStream, Decided, Event, Finished
from finesteer_local.runtime.batch.answer import CANCELLED, LENGTH
from finesteer_local.server.errors import ApiError, ClientGone, prompt_error
from finesteer_local.server.requests import Prepared
from finesteer_local.server.service import LONG, Service

T = TypeVar("T")
Events = AsyncIterator[tuple[int, Event]]


class _FreesPlaces(Response):
    """Frees the places of `_running` however the response ends, even before it began."""

    _running: Running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.close()


class EventsOf(_FreesPlaces, EventSourceResponse):
    """Server-sent events."""

    def __init__(self, running: Running, content: AsyncIterator[Any]) -> None:
        EventSourceResponse.__init__(self, content, sep="\n", headers={"Cache-Control": "no-store"})
        self._running = running


class LinesOf(_FreesPlaces, StreamingResponse):
    """One JSON object a line."""

    def __init__(self, running: Running, content: AsyncIterator[str]) -> None:
        StreamingResponse.__init__(
            self, content, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"}
        )
        self._running = running


class Running:
    """What was given to the engine for one HTTP request.

    Args:
        streams: the answer is read as it comes, so that little of it can be taken back.

    Raises:
        ApiError, ProfileError, SteeringError: the engine does not take it; nothing runs then.
    """

    def __init__(self, service: Service, prepared: Prepared, *, streams: bool = False) -> None:
        self._metrics = service.metrics
        requests = prepared.requests
        if not streams:
            requests = [replace(request, look_ahead=WHOLE) for request in requests]
        try:
            self._streams = service.submit(requests)
        except PromptError as error:
            raise prompt_error(error, prepared.param) from error
        seconds = service.settings.limits.seconds
        self._clock = asyncio.get_running_loop().call_later(seconds, self._cancel)

    async def respond(
        self,
        http: HttpRequest,
        whole: Callable[[list[Answer]], T],
        parts: Callable[[Events], AsyncIterator[Any]] | None = None,
        kind: type[EventsOf | LinesOf] = EventsOf,
    ) -> T | Response:
        """What an endpoint gives back, the places being free at its end: `whole`, or a stream of `parts` where given.

        An error that comes before the first part is raised: it can still be the answer's status.

        Raises:
            ClientGone: the client went away.
        """
        if parts is not None:
            return kind(self, parts(await self._opened(http)))
        try:
            return whole(await unless_gone(http, self.answers()))
        finally:
            self.close()

    async def _opened(self, http: HttpRequest) -> Events:
        """The events, once the first is there."""
        events = self.events()
        try:
            first = await unless_gone(http, anext_of(events))
        except BaseException:
            self.close()
            raise

        async def all_events() -> Events:
            yield first
            async for event in events:
                yield event

        return all_events()

    def close(self) -> None:
        """Free the places; nothing happens to answers that are complete."""
        self._clock.cancel()
        self._cancel()

    def _cancel(self) -> None:
        for stream in self._streams:
            if not stream.ended and not stream.cancelled:
                stream.cancel()
                self._metrics.answers.labels(CANCELLED).inc()

    async def answers(self) -> list[Answer]:
        """All answers, whole.

        Raises:
            ApiError: the time was up before the first token.
        """
        found: list[list[Event]] = [[] for _ in self._streams]
        async for number, event in self.events():
            found[number].append(event)
        return [Answer.of(events) for events in found]

    async def events(self) -> Events:
        """The events of all streams as they come, each with its stream's number."""
        if len(self._streams) == 1:
            async for event in self._events(self._streams[0]):
                yield 0, event
            return
        queue: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue()

        async def pour(number: int, stream: AnswerStream) -> None:
            try:
                async for event in self._events(stream):
                    queue.put_nowait((number, event))
                queue.put_nowait((number, None))
            except BaseException as error:
                queue.put_nowait((number, error))

        tasks = [asyncio.create_task(pour(number, stream)) for number, stream in enumerate(self._streams)]
        try:
            left = len(tasks)
            while left:
                number, found = await queue.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield number, found
        finally:
            for task in tasks:
                task.cancel()

    async def _events(self, stream: AnswerStream) -> AsyncIterator[Event]:
        decided = False
        async for event in stream:
            if isinstance(event, Decided):
                decided = True
                self._metrics.decided(event.decisions)
            elif isinstance(event, Finished):
                self._metrics.finished(event)
                if event.reason == CANCELLED and not decided:
                    raise ApiError(503, "the request's time was up before the answer began", code="timeout")
            yield event


def finish_reason(event: Finished) -> str:
    """`stop`, `length` or `content_filter`; an answer whose time was up was cut like one that was too long."""
    return LENGTH if event.reason == CANCELLED else event.reason


def size_of(http: HttpRequest) -> int:
    """Bytes of a request's body; one that does not say counts as a long one."""
    length = http.headers.get("content-length", "")
    return int(length) if length.isdecimal() else LONG + 1


async def unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """Wait for `work`, but no longer than the client does.

    Raises:
        ClientGone: it went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for other in (task, gone):
            if not other.done():
                other.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await other


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def anext_of(events: AsyncIterator[T]) -> T:
    """`anext` as a coroutine, which can be a task."""
    return await events.__anext__()
