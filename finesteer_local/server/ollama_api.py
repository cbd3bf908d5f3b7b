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
from finesteer_local.runtime.batch import Answer, Decided, Finished, Piece, Request
from finesteer_local.server import ollama_schemas as schemas
from finesteer_local.server.errors import ApiError, api_error
from finesteer_local.server.openai_schemas import ChatRequest, CompletionRequest
from finesteer_local.server.requests import of_chat, of_completion
from finesteer_local.server.running import Event, LinesOf, Running, finish_reason, opened, unless_gone
from finesteer_local.server.schemas import describe
from finesteer_local.server.service import Model, Service
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
        try:
            wanted = self._wanted.chat()
        except ValidationError as error:
            raise ApiError(400, str(error.errors()[0]["msg"])) from error
        if wanted is None:
            service.model  # noqa: B018  (raises while it is being loaded)
            return self._part("", done=True, done_reason="load")
        self._steered_as = wanted.steering
        self._request = await service.prepare(lambda model: _request(model, wanted, service))
        running = Running(service, [self._request])
        if self._wanted.stream is not False:
            return LinesOf(running, self._lines(await opened(http, running)))
        try:
            [answer] = await unless_gone(http, running.answers())
        finally:
            running.close()
        return self._whole(answer)

    def _part(self, text: str, **more: Any) -> dict[str, Any]:
        content = {"role": "assistant", "content": text} if self._field == "message" else text
        return {"model": self._name, "created_at": _time(datetime.now(timezone.utc)), self._field: content, **more}

    def _steering(self, decisions: Sequence[Decision]) -> dict[str, Any]:
        return describe(self._request, decisions, self._steered_as)

    def _whole(self, answer: Answer) -> dict[str, Any]:
        return self._part(answer.text, steering=self._steering(answer.decisions), **_end(answer.finished))

    async def _lines(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        try:
            async for _, event in events:
                if isinstance(event, Decided):
                    part = self._part("", done=False, steering=self._steering(event.decisions))
                elif isinstance(event, Piece):
                    part = self._part(event.text, done=False)
                else:
                    part = self._part("", **_end(event))
                yield json.dumps(part, ensure_ascii=False) + "\n"
        except Exception as error:
            yield json.dumps({"error": api_error(error).message}, ensure_ascii=False) + "\n"


def _request(model: Model, wanted: ChatRequest | CompletionRequest, service: Service) -> Request:
    limits = service.settings.limits
    if isinstance(wanted, ChatRequest):
        return of_chat(model, wanted, limits)[0]
    [(request, _)] = of_completion(model, wanted, limits)
    return request


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
        "capabilities": ["completion", "tools"] if "tools" in template else ["completion"],
    }
