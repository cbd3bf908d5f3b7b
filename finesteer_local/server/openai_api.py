"""OpenAI's interface: chats and the list of models. Raw completions are in `completions_api`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local.runtime.batch import Answer, Decided, Finished, Piece
from finesteer_local.server.errors import api_error
from finesteer_local.server.logprobs import chat_logprobs
from finesteer_local.server.openai_schemas import ChatCompletion, ChatRequest, ModelOut, Models
from finesteer_local.server.requests import of_chat
from finesteer_local.server.running import Event, EventsOf, Running, finish_reason, opened, unless_gone
from finesteer_local.server.schemas import ERRORS, describe
from finesteer_local.server.service import Service

EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
DONE = b"data: [DONE]\n\n"


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(responses=ERRORS)

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        response_model_exclude_unset=True,
        responses={200: {"content": EVENTS, "description": "The answer, or with `stream` its chunks."}},
    )
    async def create_chat_completion(http: HttpRequest, wanted: ChatRequest) -> Any:
        """Answer a conversation."""
        return await _Chat(service, wanted).respond(http)

    @routes.get("/v1/models", response_model=Models)
    async def list_models() -> Models:
        """List the one model that this server has."""
        return Models(data=[describe_model(service)])

    @routes.get("/v1/models/{model}", response_model=ModelOut)
    async def get_model(model: str) -> ModelOut:
        """Show the model."""
        service.check_name(model)
        return describe_model(service)

    return routes


def describe_model(service: Service) -> ModelOut:
    """The model, as OpenAI's clients list it."""
    settings, engine = service.settings, service.model.engine
    created = int(settings.path.stat().st_mtime)
    return ModelOut(id=settings.name, created=created, owned_by="local", context=engine.n_ctx)


def usage(*finished: Finished) -> dict[str, Any]:
    """Tokens of one or several answers."""
    n_prompt, n_answer = sum(f.n_prompt for f in finished), sum(f.n_answer for f in finished)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": sum(f.n_cached for f in finished)},
    }


def event_data(value: Any) -> bytes:
    """One server-sent event that holds JSON, as it goes over the wire: JSON escapes what would end a line."""
    return b"data: %s\n\n" % json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class _Chat:
    """One chat request on its way."""

    def __init__(self, service: Service, wanted: ChatRequest) -> None:
        self._service, self._wanted = service, wanted
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}

    async def respond(self, http: HttpRequest) -> Any:
        service, wanted = self._service, self._wanted
        service.check_name(wanted.model)
        limits = service.settings.limits
        self._request, self._tool = await service.prepare(lambda model: of_chat(model, wanted, limits))
        running = Running(service, [self._request])
        if wanted.stream:
            return EventsOf(running, self._chunks(await opened(http, running)))
        try:
            [answer] = await unless_gone(http, running.answers())
        finally:
            running.close()
        return self._whole(answer)

    def _finish(self, event: Finished) -> str:
        reason = finish_reason(event)
        return "tool_calls" if self._tool and reason == "stop" else reason

    def _call(self, arguments: str, *, first: bool = True) -> dict[str, Any]:
        if not first:
            return {"function": {"arguments": arguments}}
        name = f"call_{self._head['id']}"
        return {"id": name, "type": "function", "function": {"name": self._tool, "arguments": arguments}}

    def _whole(self, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if self._tool:
            message = {"role": "assistant", "content": None, "tool_calls": [self._call(answer.text)]}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": chat_logprobs(answer.scores) if self._wanted.logprobs else None,
            "finish_reason": self._finish(answer.finished),
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(answer.finished),
            "steering": describe(self._request, answer.decisions, self._wanted.steering),
        }

    async def _chunks(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[bytes]:
        options = self._wanted.stream_options
        wants_usage = bool(options and options.include_usage)
        try:
            first = True
            async for _, event in events:
                if isinstance(event, Decided):
                    content = None if self._tool else ""
                    steering = describe(self._request, event.decisions, self._wanted.steering)
                    yield self._chunk({"role": "assistant", "content": content}, steering=steering)
                elif isinstance(event, Piece):
                    delta: dict[str, Any] = {"content": event.text}
                    if self._tool:
                        delta = {"tool_calls": [{"index": 0, **self._call(event.text, first=first)}]}
                    first = False
                    yield self._chunk(delta, logprobs=chat_logprobs(event.scores) if self._wanted.logprobs else None)
                else:
                    yield self._chunk({}, finish_reason=self._finish(event))
                    if wants_usage:
                        yield event_data(
                            {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(event)}
                        )
            yield DONE
        except Exception as error:
            yield event_data({"error": api_error(error).fields()})

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event_data({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})
