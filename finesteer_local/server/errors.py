"""Every error as one JSON object: OpenAI's `{"error": {...}}`, or Ollama's `{"error": "..."}` below /api."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from finesteer_local.errors import (
    ContextLengthError,
    EngineClosedError,
    EngineError,
    FineSteerError,
    OptionError,
    ProfileError,
    PromptError,
    QueueFullError,
    StalledError,
    SteeringError,
    UnknownNameError,
    one_line,
)

log = logging.getLogger("finesteer_local.server")

RETRY_SECONDS = 2
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_SAID_BY_FASTAPI = "There was an error parsing the body"
_SAID_BY_STARLETTE = {
    404: "there is nothing at this address",
    405: "this address does not take this method",
}


class ApiError(Exception):
    """An error with the status and the fields that the client gets."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, one_line(message), param, code
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))

    def fields(self) -> dict[str, Any]:
        """The object under `error`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        param = None if self.param is None else one_line(self.param)
        return {"message": self.message, "type": kind, "param": param, "code": self.code}


class ClientGone(Exception):
    """The client went away; there is nobody to answer."""


def api_error(error: BaseException) -> ApiError:
    """What the client gets for `error`. Of an error that it did not cause, it learns only that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException) and error.detail == _SAID_BY_FASTAPI:
        message = "the body cannot be read as JSON: it is not UTF-8, nests too deep, or has a number of too many digits"
        return ApiError(400, message, code="invalid_json")
    if isinstance(error, HTTPException):
        said = _SAID_BY_STARLETTE.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, said, headers=error.headers)
    if isinstance(error, EngineClosedError):
        return ApiError(503, f"the server is stopping: {error}", code="stopping")
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full")
    if isinstance(error, EngineError):
        return ApiError(503, str(error), code="stalled" if isinstance(error, StalledError) else "engine_failed")
    if isinstance(error, PromptError):
        return prompt_error(error, None)
    if isinstance(error, UnknownNameError):
        return ApiError(400, str(error), param="steering", code="unknown_profile")
    if isinstance(error, ProfileError):
        return ApiError(400, str(error), param="steering")
    if isinstance(error, SteeringError):
        return ApiError(400, str(error), param="steering", code="steering_failed")
    if isinstance(error, FineSteerError):
        return ApiError(503, str(error))
    log.error("unexpected failure", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says more", code="internal_error")


def prompt_error(error: PromptError, param: str | None) -> ApiError:
    """What the client gets for a prompt that cannot be used."""
    if isinstance(error, OptionError):
        param = error.option or param
    code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
    return ApiError(400, str(error), param=param, code=code)


def error_response(error: BaseException, path: str) -> Response:
    """`error` as an answer, in the shape that the clients of `path` understand."""
    found = api_error(error)
    body = {"error": found.message} if path.startswith("/api/") else {"error": found.fields()}
    return JSONResponse(body, found.status, found.headers)


def validation_error(findings: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The finding that names its field best as one line, with the field's path as `param`."""
    # Where several types are allowed, each has a finding: what was meant is where it went deepest, and past the type.
    found = [(_place(finding, body), finding) for finding in findings]
    place, finding = max(found, key=lambda pair: (len(pair[0]), not pair[1]["type"].endswith("_type")))
    if finding["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if not place and not isinstance(body, dict):
        return ApiError(400, "send a JSON object, with the header Content-Type: application/json")
    message = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "extra_forbidden":
        message = "this server does not take it; leave it out"
    param = ".".join(place) or None
    return ApiError(400, f"{param}: {message}" if param else message, param=param)


def _place(finding: Mapping[str, Any], body: Any) -> list[str]:
    """Where in `body` a finding is; pydantic's own path names the members of unions too."""
    path, found = finding["loc"][1:], []
    for part in path:
        try:
            body = body[part]
        except (KeyError, IndexError, TypeError):
            if finding["type"] != "missing" or part != path[-1]:
                continue
        found.append(str(part))
    return found


def install(app: FastAPI) -> None:
    """Make every error of `app` one of these."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(error, request.url.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors(), error.body), request.url.path)

    async def nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientGone, nobody)
    for kind in (ApiError, HTTPException, FineSteerError):
        app.add_exception_handler(kind, answer)
