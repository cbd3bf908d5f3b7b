"""What was decided wrongly, kept for `finesteer-local profiles refit`: a chat's `/wrong`, for the page and for clients.

The file is that of the person who runs the server, and what is in it changes a gate with their next refit. So nothing
is kept unless the server was started so, or only this machine reaches it; and clients see, and delete, only what came
through this server, and not what anybody said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from finesteer_local import corrections
from finesteer_local.corrections import STEER, Correction
from finesteer_local.errors import DataError, PromptError, SteeringError, UnknownNameError
from finesteer_local.jsonl import Messages, messages_of, rows_text
from finesteer_local.profile import Profile
from finesteer_local.runtime.batch import Answer, Request, check_of, check_request
from finesteer_local.runtime.check import Check, asked_for
from finesteer_local.server.corrections_schemas import (
    CorrectionDeleted,
    CorrectionOut,
    CorrectionRequest,
    Corrections,
)
from finesteer_local.server.errors import ApiError, prompt_error
from finesteer_local.server.requests import MESSAGES, Prepared
from finesteer_local.server.running import Running, size_of
from finesteer_local.server.schemas import ERRORS, ErrorBody
from finesteer_local.server.service import Model, Service
from finesteer_local.steering import ContrastiveGate

T = TypeVar("T")
log = logging.getLogger("finesteer_local.server")

PATH = "/v1/steering/corrections"
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    403: {"model": ErrorBody, "description": f"{ERRORS[403]['description']} Or this server keeps no corrections."},
    404: {"model": ErrorBody, "description": "No such model, or no such correction of this server's."},
}


class _Asked(NamedTuple):
    """What a client says was decided wrongly, and the request that decides it once more."""

    messages: Messages
    request: Request
    fingerprint: str
    model_path: str


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix=PATH, responses=_RESPONSES)
    kept: dict[str, CorrectionOut] = {}  # by this server, since it was started

    @routes.post("", response_model=CorrectionOut)
    async def keep_correction(http: HttpRequest, wanted: CorrectionRequest) -> Any:
        """Keep that a question should have been steered, or should not have been. The gate is read once more for it."""
        _check_allowed(service)
        service.check_name(wanted.model)
        asked = await service.prepare(lambda model: _asked(model, wanted, service), size_of(http))

        def whole(answers: list[Answer]) -> Check:
            return check_of(asked.request, answers[0])

        check = await Running(service, Prepared([asked.request], MESSAGES)).respond(http, whole)
        assert isinstance(check, Check)  # nothing is streamed
        limit = service.settings.limits.corrections
        wrong = _correction(wanted, asked, check)
        correction = await _of_the_file(lambda: _keep(wrong, limit))
        kept.pop(correction.id, None)
        kept[correction.id] = found = _told(correction)
        return found

    @routes.get("")
    async def list_corrections() -> Corrections:
        """What this server has kept since it was started, without what was said."""
        _check_allowed(service)
        return Corrections(corrections=[*kept.values()])

    @routes.delete("/{id}")
    async def delete_correction(id: str) -> CorrectionDeleted:
        """Keep one no longer that came through this server since it was started."""
        _check_allowed(service)
        if id not in kept:
            raise ApiError(
                404,
                "no such correction came through this server since it was started; on its machine, "
                "`finesteer-local profiles corrections` lists and deletes all of them",
                code="unknown_correction",
            )
        await _of_the_file(lambda: _delete(id))
        kept.pop(id, None)
        return CorrectionDeleted(id=id, deleted=True)

    return routes


def takes_corrections(service: Service, profile: Profile) -> bool:
    """Whether this server keeps corrections of `profile`: a refit changes contrastive gates alone."""
    return service.settings.keeps_corrections and isinstance(profile.gate, ContrastiveGate)


def _check_allowed(service: Service) -> None:
    if not service.settings.keeps_corrections:
        raise ApiError(403, "this server keeps no corrections; start it with --corrections", code="corrections_off")


def _asked(model: Model, wanted: CorrectionRequest, service: Service) -> _Asked:
    limit = service.settings.limits.messages
    if len(wanted.messages) > limit:
        raise ApiError(400, f"a conversation can have {limit:,} messages", param=MESSAGES)
    steer = model.policy.as_served(wanted.profile, "profile")
    if not isinstance(steer.profile.gate, ContrastiveGate):
        raise ApiError(
            400,
            f"a gate of the kind {steer.profile.gate.kind!r} takes no corrections; only a contrastive one does",
            param="profile",
            code="no_corrections",
        )
    try:
        messages = _text_of([message.for_template() for message in wanted.messages])
        request = check_request(model.llama, messages, steer=(steer,))
    except PromptError as error:
        raise prompt_error(error, MESSAGES) from error
    except (DataError, SteeringError) as error:
        raise ApiError(400, str(error), param=MESSAGES) from error
    return _Asked(messages, request, model.llama.identity.fingerprint, str(model.llama.model_path))


def _text_of(given: list[dict[str, Any]]) -> Messages:
    """The conversation up to the last question, as the file has it: what else it says, a refit would not read."""
    found = asked_for(given)
    more = {name for message in found for name in message} - {"role", "content"}
    if more:
        raise DataError(f"messages: a correction is of roles and texts alone; leave out {', '.join(sorted(more))}")
    return messages_of({"messages": found}, "messages")


def _correction(wanted: CorrectionRequest, asked: _Asked, check: Check) -> Correction:
    [decision] = check.decisions
    if (wanted.should == STEER) == (decision.g > 0):
        did = "steers this question" if decision.g > 0 else "leaves this question alone"
        raise ApiError(400, f"{wanted.profile} {did} already; nothing was kept", param="should", code="decided_so")
    return Correction(
        profile=wanted.profile,
        fingerprint=asked.fingerprint,
        messages=asked.messages,
        should=wanted.should,
        score=round(decision.score, 4),
        threshold=round(decision.threshold, 4),
        model_path=asked.model_path,
    )


def _keep(correction: Correction, limit: int) -> Correction:
    file = corrections.file()
    size = file.stat().st_size if file.exists() else 0
    if size + len(rows_text([{"messages": correction.messages}]).encode()) > limit:
        raise ApiError(
            400,
            f"the corrections would take more than {limit:,} bytes; on the server's machine, `finesteer-local profiles "
            "corrections` lists and deletes them",
            code="corrections_full",
        )
    return corrections.keep(correction)


def _delete(id: str) -> None:
    with suppress(UnknownNameError):  # it was deleted by command
        corrections.delete([id])


async def _of_the_file(work: Callable[[], T]) -> T:
    """Read or write the file, in a thread: another program may have locked it for seconds.

    Raises:
        ApiError: it cannot be read or written. Where it lies is for the server's log alone.
    """
    try:
        return await asyncio.to_thread(work)
    except (DataError, OSError) as error:
        log.error("a correction could not be kept or deleted: %s", error)
        message = "the file of corrections cannot be read or written; the server's log says why"
        raise ApiError(503, message, code="corrections_unavailable") from error


def _told(correction: Correction) -> CorrectionOut:
    return CorrectionOut(
        id=correction.id,
        profile=correction.profile,
        should=correction.should,  # type: ignore[arg-type]
        score=correction.score,
        threshold=correction.threshold,
        kept=correction.kept,
        refit=f"finesteer-local profiles refit {correction.profile}",
    )
