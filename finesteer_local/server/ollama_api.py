"""Ollama's interface, enough for its own client and Open WebUI. One model, so nothing is pulled, made or deleted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from gguf import LlamaFileType
from pydantic import ValidationError

from finesteer_local import __version__
from finesteer_local.runtime.batch import Answer, Decided, Event, Finished, Piece, Showed, TokenScore
from finesteer_local.runtime.infill import can_infill
from finesteer_local.server import ollama_schemas as schemas
from finesteer_local.server.chat_schemas import ChatRequest
from finesteer_local.server.completions_schemas import CompletionRequest
from finesteer_local.server.errors import ApiError, api_error
from finesteer_local.server.logprobs import chat_logprobs
from finesteer_local.server.ollama_answer import AnswerParts, Thoughts, ends_in_thoughts, together
from finesteer_local.server.requests import prepared
from finesteer_local.server.running import Events, LinesOf, Running, finish_reason, size_of
from finesteer_local.server.schemas import describe
from finesteer_local.server.service import Model, Service
from finesteer_local.server.template_fields import thinking_effort, thinks
from finesteer_local.steering import Decision

LINES: dict[str, Any] = {"application/x-ndjson": {"schema": {"type": "string"}}}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api", responses=schemas.OLLAMA_ERRORS)
    lines: dict[int | str, dict[str, Any]] = {
        200: {"content": LINES, "description": "The answer; unless `stream` is false, its parts, one a line."}
    }

    @routes.post("/chat", response_model=schemas.OllamaChat, response_model_exclude_unset=True, responses=lines)
    async def ollama_chat(http: HttpRequest, wanted: schemas.OllamaChatRequest) -> Any:
        """Answer a conversation."""
        return await _Reply(service, wanted, "message").respond(http)

    @routes.post(
        "/generate", response_model=schemas.OllamaGenerated, response_model_exclude_unset=True, responses=lines
    )
    async def ollama_generate(http: HttpRequest, wanted: schemas.OllamaGenerateRequest) -> Any:
        """Answer one prompt."""
        return await _Reply(service, wanted, "response").respond(http)

    @routes.get("/tags", response_model=schemas.Tags)
    async def ollama_tags() -> Any:
        """List the one model that this server has."""
        return {"models": [_tag(service)]}

    @routes.get("/ps", response_model=schemas.LoadedModels)
    async def ollama_ps() -> Any:
        """List the loaded model."""
        tag = _tag(service)
        in_a_year = _time(datetime.now(timezone.utc) + timedelta(days=365))
        n_ctx = service.model.engine.n_ctx
        return {"models": [{**tag, "expires_at": in_a_year, "size_vram": 0, "context_length": n_ctx}]}

    @routes.post("/show", response_model=schemas.Shown)
    async def ollama_show(wanted: schemas.ShowRequest) -> Any:
        """Show what the model's file says of it."""
        check_name(service, wanted.model or wanted.name or "")
        return _shown(service)

    @routes.get("/version", response_model=schemas.Version)
    async def ollama_version() -> Any:
        """Tell the server's version."""
        return {"version": __version__}

    return routes


def check_name(service: Service, name: str) -> None:
    """As `Service.check_name`; Ollama's clients always name a model."""
    if not name:
        raise ApiError(400, "model is required", param="model")
    service.check_name(name)


class _Reply:
    """One request on its way; its text is in the field `message` or `response`."""

    def __init__(
        self, service: Service, wanted: schemas.OllamaChatRequest | schemas.OllamaGenerateRequest, field: str
    ) -> None:
        self._service, self._wanted, self._field = service, wanted, field
        self._name = wanted.model

    async def respond(self, http: HttpRequest) -> Any:
        service = self._service
        check_name(service, self._name)
        own = self._own(service.model)
        if own is None:
            return self._part({}, done=True, done_reason="load")
        self._steered_as = own.steering
        found = await prepared(service, own, size_of(http))
        [self._request] = found.requests
        self._answer = AnswerParts(found.reading(), self._thoughts())
        lines = None if self._wanted.stream is False else self._lines
        return await Running(service, found, streams=lines is not None).respond(http, self._whole, lines, LinesOf)

    def _thoughts(self) -> Thoughts | None:
        llama = self._service.model.llama
        return Thoughts(opened=ends_in_thoughts(llama, self._request.prompt)) if self._wanted.think else None

    def _own(self, model: Model) -> ChatRequest | CompletionRequest | None:
        """Our own request; None only loads the model, which it is."""
        wanted = self._wanted
        if wanted.top_logprobs and not wanted.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        raw = isinstance(wanted, schemas.OllamaGenerateRequest) and wanted.is_raw
        effort = None if raw else thinking_effort(model.llama, wanted.think)
        try:
            return wanted.chat(effort)
        except ValidationError as error:
            raise ApiError(400, str(error.errors()[0]["msg"])) from error

    def _part(self, content: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A part of the answer; `content` has some of `content`, `thinking` and `tool_calls`."""
        head = {"model": self._name, "created_at": _time(datetime.now(timezone.utc))}
        if self._field == "message":
            return {**head, "message": {"role": "assistant", "content": "", **content}, **more}
        thinking = {"thinking": content["thinking"]} if "thinking" in content else {}
        return {**head, "response": content.get("content", ""), **thinking, **more}

    def _steering(self, decisions: Sequence[Decision]) -> dict[str, Any]:
        return describe(self._request, decisions, self._steered_as)

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        return {"logprobs": chat_logprobs(scores)["content"]} if self._wanted.logprobs else {}

    def _whole(self, answers: list[Answer]) -> dict[str, Any]:
        [answer] = answers
        content = together([*self._answer.add(answer.text), *self._answer.end()])
        steering = self._steering(answer.decisions)
        return self._part(content, steering=steering, **self._logprobs(answer.scores), **_end(answer.finished))

    async def _lines(self, events: Events) -> AsyncIterator[str]:
        try:
            async for _, event in events:
                for part in self._parts(event):
                    yield json.dumps(part, ensure_ascii=False) + "\n"
        except Exception as error:
            yield json.dumps({"error": api_error(error).message}, ensure_ascii=False) + "\n"

    def _parts(self, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, Decided | Showed):
            return [self._part({}, done=False, steering=self._steering(event.decisions))]
        if isinstance(event, Piece):
            logprobs = self._logprobs(event.scores)
            found = self._answer.add(event.text) or ([{}] if logprobs else [])
            return [self._part(content, done=False, **({} if i else logprobs)) for i, content in enumerate(found)]
        rest = [self._part(content, done=False) for content in self._answer.end()]
        return [*rest, self._part({}, **_end(event))]


def _end(event: Finished) -> dict[str, Any]:
    seconds = event.queue_seconds + event.prompt_seconds + event.answer_seconds
    return {
        "done": True,
        "done_reason": finish_reason(event),
        "total_duration": int(1e9 * seconds),
        "load_duration": 0,
        "prompt_eval_count": event.n_prompt,
        "prompt_eval_duration": int(1e9 * event.prompt_seconds),
        "eval_count": event.n_answer,
        "eval_duration": int(1e9 * event.answer_seconds),
    }


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _tag(service: Service) -> dict[str, Any]:
    model, settings = service.model, service.settings
    stat = settings.path.stat()
    return {
        "name": settings.name,
        "model": settings.name,
        "modified_at": _time(datetime.fromtimestamp(stat.st_mtime, timezone.utc)),
        "size": stat.st_size,
        "digest": model.llama.identity.fingerprint,
        "details": _details(model),
    }


def _details(model: Model) -> dict[str, Any]:
    metadata = model.llama.metadata
    family, quantization = model.llama.identity.architecture, ""
    with suppress(ValueError):
        quantization = LlamaFileType(int(metadata.get("general.file_type", ""))).name.removeprefix("MOSTLY_")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": metadata.get("general.size_label", ""),
        "quantization_level": quantization,
    }


def _shown(service: Service) -> dict[str, Any]:
    model = service.model
    metadata = dict(model.llama.metadata)
    template = metadata.pop("tokenizer.chat_template", "")
    info: dict[str, Any] = {key: int(value) if value.isdecimal() else value for key, value in metadata.items()}
    return {
        "modelfile": f"FROM {service.settings.name}",
        "parameters": "",
        "template": template,
        "modified_at": _tag(service)["modified_at"],
        "details": _details(model),
        "model_info": info,
        "capabilities": _capabilities(model, template),
    }


def _capabilities(model: Model, template: str) -> list[str]:
    found = ["completion"]
    if "tools" in template:
        found.append("tools")
    if can_infill(model.llama):
        found.append("insert")
    if thinks(model.llama):
        found.append("thinking")
    return found
