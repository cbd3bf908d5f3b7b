"""Who may talk to the server: by which name, from which page, with which key, and how much at once.

A web page in the user's browser can send requests to this machine. It cannot send another Host than its own address
(DNS rebinding gives it one that it chose), it cannot hide its Origin, and without CORS headers it reads no answer.
"""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finesteer_local.server.errors import ApiError, error_response
from finesteer_local.server.settings import ServerSettings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_BODY_SECONDS = 30.0  # until the next part of a body must have come


class Guard:
    """ASGI middleware around everything: it refuses what must not reach the API, and signs every answer."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def signed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        if scope["path"].startswith("/api/"):
            scope = _as_json(scope)
        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
            await self._app(scope, _Limited(receive, self._settings.limits.body), signed)
        except Exception as error:
            response = error_response(error, scope["path"])  # logs what nobody expected
            if not started:
                await response(scope, receive, signed)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._settings.knows_host(host_name(host)):
            raise ApiError(403, "this server is not known by that name; start it with --allow-host NAME if it is yours")
        if method not in _SAFE:
            _check_origin(host, headers)
        if self._settings.api_key and not is_open(path):
            self._check_key(headers)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.limits.body:
            raise too_large(self._settings.limits.body)

    def _check_key(self, headers: Headers) -> None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if kind.lower() == "bearer" else ""
        if not hmac.compare_digest(given.encode("latin-1"), (self._settings.api_key or "").encode()):
            raise ApiError(
                401,
                "a key is missing or wrong; send it as: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _as_json(scope: Scope) -> Scope:
    """Ollama reads every body as JSON, so its clients, and `curl -d`, do not say that theirs are."""
    name = b"content-type"
    headers = [(key, value) for key, value in scope["headers"] if key.lower() != name]
    return {**scope, "headers": [*headers, (name, b"application/json")]}


def is_open(path: str) -> bool:
    """Whether `path` is served without a key: the page, which asks for it, and whether the server lives."""
    return path in ("/", "/health", "/favicon.ico") or path.startswith("/static/")


def host_name(host: str) -> str:
    """The name in a Host header, without its port and an IPv6 address's brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def too_large(limit: int) -> ApiError:
    """The error for a body over the limit."""
    return ApiError(413, f"the request is larger than {limit:,} bytes", code="request_too_large")


def _check_origin(host: str, headers: Headers) -> None:
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit_netloc(origin) != host.lower()
    if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise ApiError(403, "pages of other origins cannot use this server")


def urlsplit_netloc(origin: str) -> str:
    """Host and port of an Origin header; empty for `null` and what is no web origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.netloc.lower() if parts.scheme in ("http", "https") else ""


class _TooLarge(HTTPException):
    """FastAPI passes on this kind alone while it reads a body."""


class _Limited:
    """`receive` that ends a request whose body grows over the limit, or does not come."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._size, self._done = 0, False

    async def __call__(self) -> Message:
        if self._done:  # only a disconnect is left to come
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _BODY_SECONDS)
        except asyncio.TimeoutError as error:  # on 3.10 not yet the built-in
            raise HTTPException(408, "the request's body did not come") from error
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._done = not message.get("more_body", False)
            if self._size > self._limit:
                raise _TooLarge(413, too_large(self._limit).message)
        return message
