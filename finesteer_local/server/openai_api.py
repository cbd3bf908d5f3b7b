"""OpenAI's interface: chats and the list of models. Raw completions are in `completions_api`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local.runtime.batch import Answer, Decided, Finished, Piece, Showed, TokenScore
from finesteer_local.server.chat_schemas import ChatCompletion, ChatRequest
from finesteer_local.server.errors import api_error
from finesteer_local.server.logprobs import chat_logprobs
from finesteer_local.server.openai_schemas import ModelOut, Models
from finesteer_local.server.requests import prepared
from finesteer_local.server.running import Events, Running, finish_reason, size_of
from finesteer_local.server.schemas import ERRORS, describe
from finesteer_local.server.service import Service
from finesteer_local.server.tool_calls import Begins, Part, PlainText, Reading, Text
from finesteer_local.steering import Decision

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


def usage(*finished: Finished, n: int = 1) -> dict[str, Any]:
    """Tokens of one or several answers; `n` answers in a row have the same prompt, which counts once."""
    n_prompt, n_answer = sum(f.n_prompt for f in finished[::n]), sum(f.n_answer for f in finished)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": sum(f.n_cached for f in finished[::n])},
    }


def event_data(value: Any) -> bytes:
    """One server-sent event that holds JSON, as it goes over the wire: JSON escapes what would end a line."""
    return b"data: %s\n\n" % json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class _Choice:
    """One choice's calls of tools, in OpenAI's shape."""

    def __init__(self, reading: Reading) -> None:
        self._reading, self.n_calls = reading, 0

    def deltas(self, text: str, *, ends: bool = False) -> list[dict[str, Any]]:
        """What a stream says once `text` has come."""
        parts = [*(self._reading.add(text) if text else []), *(self._reading.end() if ends else [])]
        return [self._delta(part) for part in parts]

    def _delta(self, part: Part) -> dict[str, Any]:
        if isinstance(part, Text):
            return {"content": part.text}
        if isinstance(part, Begins):
            self.n_calls += 1
            call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
            return self._call({**call, "function": {"name": part.name, "arguments": ""}})
        return self._call({"function": {"arguments": part.text}})

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": self.n_calls - 1, **call}]}

    def finish(self, event: Finished) -> str:
        reason = finish_reason(event)
        return "tool_calls" if self.n_calls and reason == "stop" else reason

    def message(self, text: str) -> dict[str, Any]:
        """The whole answer."""
        content, calls = "", list[dict[str, Any]]()
        for delta in self.deltas(text, ends=True):
            content += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    calls.append({"id": call["id"], "type": "function", "function": call["function"]})
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        return {**message, "content": content.strip() or None, "tool_calls": calls} if calls else message


class _Chat:
    """One chat request on its way."""

    def __init__(self, service: Service, wanted: ChatRequest) -> None:
        self._service, self._wanted = service, wanted
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.settings.name}

    async def respond(self, http: HttpRequest) -> Any:
        service, wanted = self._service, self._wanted
        service.check_name(wanted.model)
        chat = await prepared(service, wanted, size_of(http))
        self._request = chat.requests[0]
        self._choices = [_Choice(chat.reading()) for _ in chat.requests]
        return await Running(service, chat, streams=bool(wanted.stream)).respond(
            http, self._whole, self._chunks if wanted.stream else None
        )

    def _whole(self, answers: list[Answer]) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(i, answer) for i, answer in enumerate(answers)],
            "usage": usage(*(answer.finished for answer in answers), n=len(answers)),
            "steering": describe(self._request, answers[0].decisions, self._wanted.steering),
        }

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        return chat_logprobs(scores) if self._wanted.logprobs else None

    def _decide(self, index: int, decisions: Sequence[Decision]) -> bool:
        """Gives whether the request is refused at once: then its words are neither a tool's arguments nor JSON."""
        refused = any(decision.refused for decision in decisions)
        if refused:
            self._choices[index] = _Choice(PlainText())
        return refused

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        refused = self._decide(index, answer.decisions)
        choice = self._choices[index]
        message = choice.message(answer.text)
        return {
            "index": index,
            "message": {**message, "refusal": answer.text} if refused else message,
            "logprobs": self._logprobs(answer.scores),
            "finish_reason": choice.finish(answer.finished),
        }

    async def _chunks(self, events: Events) -> AsyncIterator[bytes]:
        options = self._wanted.stream_options
        wants_usage = bool(options and options.include_usage)
        finished: dict[int, Finished] = {}
        try:
            async for index, event in events:
                choice = self._choices[index]
                if isinstance(event, Decided):
                    self._decide(index, event.decisions)
                    steering = describe(self._request, event.decisions, self._wanted.steering)
                    yield self._chunk(index, {"role": "assistant", "content": ""}, steering=steering)
                elif isinstance(event, Piece):
                    deltas: list[dict[str, Any]] = choice.deltas(event.text)
                    logprobs = self._logprobs(event.scores)
                    if logprobs and not deltas:
                        deltas = [{}]
                    for i, delta in enumerate(deltas):
                        yield self._chunk(index, delta, logprobs=None if i else logprobs)
                elif isinstance(event, Showed):
                    steering = describe(self._request, event.decisions, self._wanted.steering)
                    yield self._chunk(index, {}, steering=steering)
                else:
                    finished[index] = event
                    for delta in choice.deltas("", ends=True):
                        yield self._chunk(index, delta)
                    yield self._chunk(index, {}, finish_reason=choice.finish(event))
            if wants_usage:
                tokens = usage(*finished.values(), n=len(finished))
                yield event_data({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": tokens})
            yield DONE
        except Exception as error:
            yield event_data({"error": api_error(error).fields()})

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event_data({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})
