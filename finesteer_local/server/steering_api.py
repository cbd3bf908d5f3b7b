"""What no other server has: profiles listed, swapped while it runs, and decided by without an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local.runtime.batch import Answer, Request
from finesteer_local.server.chat_schemas import ExplainRequest
from finesteer_local.server.corrections_api import takes_corrections
from finesteer_local.server.requests import MESSAGES, Prepared, conversation
from finesteer_local.server.running import Running, size_of
from finesteer_local.server.schemas import (
    ERRORS,
    Decisions,
    Defaults,
    DefaultsNow,
    Profiles,
    describe,
    describe_profile,
)
from finesteer_local.server.service import Model, Service
from finesteer_local.server.template_fields import variables


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/steering", responses=ERRORS)

    @routes.get("")
    async def get_steering() -> DefaultsNow:
        """How requests are steered that do not say how."""
        return await service.prepare(lambda model: model.policy.now())

    @routes.put("")
    async def put_steering(wanted: Defaults) -> DefaultsNow:
        """Swap the defaults; requests that run keep theirs."""

        def swap(model: Model) -> DefaultsNow:
            model.policy.replace(wanted)
            return model.policy.now()

        return await service.prepare(swap)

    @routes.get("/profiles")
    async def list_profiles() -> Profiles:
        """The profiles that requests can name."""
        return await service.prepare(lambda model: _profiles(model, service))

    @routes.post("/explain", response_model=Decisions, response_model_exclude_unset=True)
    async def explain(http: HttpRequest, wanted: ExplainRequest) -> Any:
        """Decide, and generate nothing."""
        service.check_name(wanted.model)
        request = await service.prepare(lambda model: _explained(model, wanted, service), size_of(http))

        def decided(answers: list[Answer]) -> dict[str, Any]:
            return describe(request, answers[0].decisions, wanted.steering)

        return await Running(service, Prepared([request], MESSAGES)).respond(http, decided)

    return routes


def _profiles(model: Model, service: Service) -> Profiles:
    policy = model.policy
    return Profiles(
        profiles=[
            describe_profile(
                p,
                active=policy.is_active(p.name),
                required=policy.is_required(p.name),
                takes_corrections=takes_corrections(service, p),
            )
            for p in policy.shelf.all()
        ]
    )


def _explained(model: Model, wanted: ExplainRequest, service: Service) -> Request:
    options: dict[str, Any] = {"tools": [tool.for_template() for tool in wanted.tools]} if wanted.tools else {}
    limits, chosen = service.settings.limits, variables(model.llama, wanted)
    request = conversation(model, wanted.messages, wanted.steering, limits, chosen, **options)
    return replace(request, max_tokens=0)
