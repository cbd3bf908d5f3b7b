"""OpenAI's older interface, `/v1/completions`: text that goes on, with log-probabilities of the prompt where asked."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local.runtime.batch import Answer, Decided, Finished, Piece, Showed, TokenScore
from finesteer_local.server.completions_schemas import Completion, CompletionRequest
from finesteer_local.server.errors import api_error
from finesteer_local.server.logprobs import Offsets
from finesteer_local.server.openai_api import DONE, EVENTS, event_data, usage
from finesteer_local.server.requests import prepared
from finesteer_local.server.running import Events, Running, finish_reason, size_of
from finesteer_local.server.schemas import ERRORS, describe
from finesteer_local.server.service import Service
from finesteer_local.steering import Decision


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(responses=ERRORS)

    @routes.post(
        "/v1/completions",
        response_model=Completion,
        response_model_exclude_unset=True,
        responses={200: {"content": EVENTS, "description": "The texts, or with `stream` their chunks."}},
    )
    async def create_completion(http: HttpRequest, wanted: CompletionRequest) -> Any:
        """Go on with one text or several, without a chat template; each gets a decision of its own."""
        return await _Completion(service, wanted).respond(http)

    return routes


class _Completion:
    """One completion request on its way."""

    def __init__(self, service: Service, wanted: CompletionRequest) -> None:
        self._service, self._wanted = service, wanted
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.settings.name,
        }

    async def respond(self, http: HttpRequest) -> Any:
        service, wanted = self._service, self._wanted
        service.check_name(wanted.model)
        texts = await prepared(service, wanted, size_of(http))
        self._requests, self._echoes = texts.requests, texts.echoes
        return await Running(service, texts, streams=bool(wanted.stream)).respond(
            http, self._whole, self._chunks if wanted.stream else None
        )

    def _whole(self, answers: list[Answer]) -> dict[str, Any]:
        return {
            **self._head,
            "choices": [self._choice(i, answer) for i, answer in enumerate(answers)],
            "usage": usage(*(answer.finished for answer in answers), n=self._wanted.n or 1),
        }

    def _steering(self, index: int, decisions: Sequence[Decision]) -> dict[str, Any]:
        return describe(self._requests[index], decisions, self._wanted.steering)

    def _logprobs(self, offsets: Offsets, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        return None if self._wanted.logprobs is None else offsets.logprobs(scores)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": self._echoes[index] + answer.text,
            "logprobs": self._logprobs(Offsets(), (*answer.prompt_scores, *answer.scores)),
            "finish_reason": finish_reason(answer.finished),
            "steering": self._steering(index, answer.decisions),
        }

    async def _chunks(self, events: Events) -> AsyncIterator[bytes]:
        options = self._wanted.stream_options
        offsets = [Offsets() for _ in self._requests]
        finished: dict[int, Finished] = {}
        try:
            async for index, event in events:
                if isinstance(event, Decided):
                    logprobs = self._logprobs(offsets[index], event.prompt_scores)
                    steering = self._steering(index, event.decisions)
                    yield self._chunk(index, self._echoes[index], logprobs, steering=steering)
                elif isinstance(event, Piece):
                    yield self._chunk(index, event.text, self._logprobs(offsets[index], event.scores))
                elif isinstance(event, Showed):
                    yield self._chunk(index, "", None, steering=self._steering(index, event.decisions))
                else:
                    finished[index] = event
                    yield self._chunk(index, "", None, finish_reason(event))
            if options and options.include_usage:
                yield event_data({**self._head, "choices": [], "usage": self._usage(finished)})
            yield DONE
        except Exception as error:
            yield event_data({"error": api_error(error).fields()})

    def _usage(self, finished: dict[int, Finished]) -> dict[str, Any]:
        return usage(*(finished[i] for i in sorted(finished)), n=self._wanted.n or 1)

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None = None, **more: Any
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **more}
        return event_data({**self._head, "choices": [choice]})
