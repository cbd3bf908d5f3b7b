"""OpenAI's `/v1/moderations`: what kind of request an input is, and what an answer to it shows, from a pass that stops
after the last layer that a gate reads."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local.errors import PromptError, SteeringError
from finesteer_local.runtime.batch import Answer, Request, check_of, check_request
from finesteer_local.runtime.check import Check
from finesteer_local.server.errors import ApiError, prompt_error
from finesteer_local.server.moderations_schemas import CATEGORIES, Moderation, ModerationRequest
from finesteer_local.server.requests import Prepared
from finesteer_local.server.running import Running, size_of
from finesteer_local.server.schemas import ERRORS
from finesteer_local.server.service import Model, Service

INPUT = "input"
_OPENAI = ("omni-moderation-", "text-moderation-")
"""Clients that name one of OpenAI's models mean whatever a server moderates with."""


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(responses=ERRORS)

    @routes.post("/v1/moderations", response_model=Moderation)
    async def create_moderation(http: HttpRequest, wanted: ModerationRequest) -> Any:
        """Say what kind of request each input is, and whether an answer at its end shows more; nothing is answered."""
        if not (wanted.model or "").startswith(_OPENAI):
            service.check_name(wanted.model)
        requests = await service.prepare(lambda model: _requests(model, wanted, service), size_of(http))

        def whole(answers: list[Answer]) -> dict[str, Any]:
            found = [check_of(request, answer) for request, answer in zip(requests, answers, strict=True)]
            head = {"id": f"modr-{uuid.uuid4().hex}", "model": service.settings.name}
            return {**head, "results": [_result(check) for check in found]}

        return await Running(service, Prepared(requests, INPUT)).respond(http, whole)

    return routes


def _requests(model: Model, wanted: ModerationRequest, service: Service) -> list[Request]:
    prompts, limits = wanted.prompts(), service.settings.limits
    if len(prompts) > limits.prompts:
        raise ApiError(400, f"a request can have {limits.prompts} inputs", param=INPUT)
    if any(len(prompt) > limits.messages for prompt in prompts if not isinstance(prompt, str)):
        raise ApiError(400, f"a conversation can have {limits.messages:,} messages", param=INPUT)
    steer = model.policy.steer(wanted.steering)
    if not steer:
        raise ApiError(
            400,
            "there is no profile to check with: start the server with --profile, or name one in `steering`",
            param="steering",
            code="no_profile",
        )
    try:
        return [
            check_request(
                model.llama,
                prompt if isinstance(prompt, str) else [message.for_template() for message in prompt],
                steer=steer,
            )
            for prompt in prompts
        ]
    except PromptError as error:
        raise prompt_error(error, INPUT) from error
    except SteeringError as error:
        raise ApiError(400, str(error), param=INPUT) from error


def _result(check: Check) -> dict[str, Any]:
    """A `ModerationResult`. A category holds where one of the kinds does that the request counts as."""
    scores = check.openai()
    held = {category for name in check.likely_kinds for category in check.about(name).openai}
    names = [*CATEGORIES, *sorted(scores.keys() - set(CATEGORIES))]
    told = check.to_json()
    return {
        "flagged": check.flagged,
        "categories": {name: name in held for name in names},
        "category_scores": {name: scores.get(name, 0.0) for name in names},
        "category_applied_input_types": {name: ["text"] if name in scores else [] for name in names},
        **{name: told[name] for name in ("kinds", "likely_kinds", "mlcommons", "decisions")},
    }
