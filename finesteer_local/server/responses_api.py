"""OpenAI's newer interface, `/v1/responses`: text, streams of events, and functions."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import ValidationError

from finesteer_local.runtime.batch import Answer, Decided, Finished, Piece, Showed, TokenScore
from finesteer_local.runtime.rewindable import CONTENT_FILTER
from finesteer_local.server.chat_schemas import ChatRequest
from finesteer_local.server.errors import ApiError, api_error
from finesteer_local.server.logprobs import chat_logprobs
from finesteer_local.server.openai_api import EVENTS
from finesteer_local.server.requests import prepared
from finesteer_local.server.responses_memory import Memory
from finesteer_local.server.responses_schemas import (
    LOGPROBS,
    CallItem,
    Item,
    MessageItem,
    ResponseOut,
    ResponsesRequest,
)
from finesteer_local.server.running import Events, Running, finish_reason, size_of
from finesteer_local.server.schemas import ERRORS, describe
from finesteer_local.server.service import Service
from finesteer_local.server.tool_calls import Begins, Reading, Text

Told = tuple[str, dict[str, Any]]  # an event's type and its fields

_PARAMS = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""What fields of a chat are called here."""


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(responses=ERRORS)
    memory = Memory()

    @routes.post(
        "/v1/responses",
        response_model=ResponseOut,
        response_model_exclude_unset=True,
        responses={200: {"content": EVENTS, "description": "The answer, or with `stream` its events."}},
    )
    async def create_response(http: HttpRequest, wanted: ResponsesRequest) -> Any:
        """Answer a conversation, as OpenAI's newer clients ask."""
        return await _Response(service, memory, wanted).respond(http)

    return routes


def _name(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


class _Output:
    """The items of an answer as they grow, and the events that tell of it."""

    def __init__(self, reading: Reading) -> None:
        self.items: list[dict[str, Any]] = []
        self._reading = reading
        self._open: dict[str, Any] | None = None

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> list[Told]:
        """Go on with `text`."""
        told: list[Told] = []
        for part in self._reading.add(text) if text else []:
            told += self._part(part, logprobs)
            logprobs = []
        return told

    def end(self, status: str) -> list[Told]:
        """The answer is complete; one without any items is an empty message."""
        told = [event for part in self._reading.end() for event in self._part(part, [])]
        if not self.items:
            told += self._message()
        return [*told, *self._close(status)]

    def _part(self, part: Any, logprobs: list[dict[str, Any]]) -> list[Told]:
        if isinstance(part, Text):
            told = [] if self._is("message") else self._message()
            assert self._open is not None
            self._open["content"][0]["text"] += part.text
            self._open["content"][0]["logprobs"] += logprobs
            delta = {"content_index": 0, "delta": part.text, "logprobs": logprobs}
            return [*told, ("response.output_text.delta", self._here(delta))]
        if isinstance(part, Begins):
            item = {"id": _name("fc"), "type": "function_call", "status": "in_progress", "call_id": _name("call")}
            return self._begin({**item, "name": part.name, "arguments": ""})
        assert self._open is not None
        self._open["arguments"] += part.text
        return [("response.function_call_arguments.delta", self._here({"delta": part.text}))]

    def _message(self) -> list[Told]:
        item: dict[str, Any] = {
            "id": _name("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        told = self._begin(item)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        told.append(("response.content_part.added", self._here({"content_index": 0, "part": {**part, "logprobs": []}})))
        item["content"] = [part]
        return told

    def _begin(self, item: dict[str, Any]) -> list[Told]:
        told = self._close("completed")
        self._open = item
        self.items.append(item)
        return [*told, ("response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(item)})]

    def _close(self, status: str) -> list[Told]:
        item, told = self._open, list[Told]()
        if item is None:
            return []
        if item["type"] == "message":
            [part] = item["content"]
            done = {"content_index": 0, "text": part["text"], "logprobs": part["logprobs"]}
            told.append(("response.output_text.done", self._here(done)))
            told.append(("response.content_part.done", self._here({"content_index": 0, "part": part})))
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            told.append(("response.function_call_arguments.done", self._here(done)))
        item["status"] = status
        told.append(("response.output_item.done", {"output_index": len(self.items) - 1, "item": item}))
        self._open = None
        return told

    def _is(self, kind: str) -> bool:
        return self._open is not None and self._open["type"] == kind

    def _here(self, fields: dict[str, Any]) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items) - 1, **fields}


class _Response:
    """One request on its way."""

    def __init__(self, service: Service, memory: Memory, wanted: ResponsesRequest) -> None:
        self._service, self._memory, self._wanted = service, memory, wanted
        given = wanted.model_dump(mode="json", by_alias=True, exclude_none=True)
        self._head: dict[str, Any] = {
            "id": _name("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": service.settings.name,
            "error": None,
            "incomplete_details": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "instructions": wanted.instructions,
            "previous_response_id": wanted.previous_response_id,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "max_output_tokens": wanted.max_output_tokens,
            "tools": given.get("tools", []),
            "tool_choice": given.get("tool_choice", "auto"),
            "text": {"format": {"type": "text"}, **given.get("text", {})},
            "truncation": "disabled",
            "store": wanted.store is not False,
        }

    async def respond(self, http: HttpRequest) -> Any:
        service, wanted = self._service, self._wanted
        service.check_name(wanted.model)
        self._items = self._memory.conversation(wanted.previous_response_id, wanted.items())
        try:
            own = wanted.chat(self._items)
        except ValidationError as error:
            raise ApiError(400, str(error.errors()[0]["msg"]), param="input") from error
        try:
            return await self._respond(http, own)
        except ApiError as error:
            if error.param is not None:  # the client has not sent a chat
                error.param = _PARAMS.get(error.param, error.param)
            raise

    async def _respond(self, http: HttpRequest, own: ChatRequest) -> Any:
        remembered = sum(len(message.content or "") for message in own.messages)
        chat = await prepared(self._service, own, max(size_of(http), remembered))
        [self._request] = chat.requests
        self._output = _Output(chat.reading())
        events = self._events if self._wanted.stream else None
        return await Running(self._service, chat, streams=bool(self._wanted.stream)).respond(http, self._whole, events)

    def _whole(self, answers: list[Answer]) -> dict[str, Any]:
        [answer] = answers
        self._output.add(answer.text, self._logprobs(answer.scores))
        self._output.end(_status(answer.finished))
        steering = describe(self._request, answer.decisions, self._wanted.steering)
        return {**self._ended(answer.finished), "steering": steering}

    def _logprobs(self, scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
        wanted = LOGPROBS in (self._wanted.include or ())
        return list(chat_logprobs(scores)["content"]) if wanted else []

    def _begun(self) -> dict[str, Any]:
        return {**self._head, "status": "in_progress", "output": [], "usage": None}

    def _ended(self, event: Finished) -> dict[str, Any]:
        """The answer, which is remembered from now on."""
        output = self._output.items
        if self._wanted.store is not False:
            items = [_as_input(item) for item in output]
            for item, kept in zip(output, items, strict=True):
                self._memory.keep(item["id"], [kept])
            self._memory.keep(self._head["id"], [*self._items, *items])
        usage = {
            "input_tokens": event.n_prompt,
            "input_tokens_details": {"cached_tokens": event.n_cached},
            "output_tokens": event.n_answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": event.n_prompt + event.n_answer,
        }
        status = _status(event)
        found = {**self._head, "status": status, "output": output, "usage": usage}
        why = CONTENT_FILTER if event.reason == CONTENT_FILTER else "max_output_tokens"
        return found if status == "completed" else {**found, "incomplete_details": {"reason": why}}

    async def _events(self, events: Events) -> AsyncIterator[bytes]:
        number = 0

        def data(told: Told) -> bytes:
            nonlocal number
            kind, fields = told
            value = {"type": kind, "sequence_number": number, **fields}
            number += 1
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            return f"event: {kind}\ndata: {text}\n\n".encode()

        steering: dict[str, Any] = {}
        try:
            async for _, event in events:
                if isinstance(event, Decided):
                    steering = {"steering": describe(self._request, event.decisions, self._wanted.steering)}
                    begun = {"response": {**self._begun(), **steering}}
                    yield data(("response.created", begun))
                    yield data(("response.in_progress", begun))
                elif isinstance(event, Piece):
                    for told in self._output.add(event.text, self._logprobs(event.scores)):
                        yield data(told)
                elif isinstance(event, Showed):  # the API has no event for it: the end tells
                    steering = {"steering": describe(self._request, event.decisions, self._wanted.steering)}
                else:
                    status = _status(event)
                    for told in self._output.end(status):
                        yield data(told)
                    yield data((f"response.{status}", {"response": {**self._ended(event), **steering}}))
        except Exception as error:
            found = api_error(error)
            yield data(("error", {"code": found.code, "message": found.message, "param": found.param}))


def _status(event: Finished) -> str:
    return "completed" if finish_reason(event) == "stop" else "incomplete"


def _as_input(item: dict[str, Any]) -> Item:
    """An item of an answer as the next request would send it."""
    if item["type"] == "message":
        return MessageItem(role="assistant", content="".join(part["text"] for part in item["content"]))
    return CallItem(type="function_call", call_id=item["call_id"], name=item["name"], arguments=item["arguments"])
