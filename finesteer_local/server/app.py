"""The application: routes, middleware and life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from sse_starlette.sse import AppStatus

from finesteer_local import __version__
from finesteer_local.errors import StalledError
from finesteer_local.server import (
    completions_api,
    corrections_api,
    errors,
    moderations_api,
    ollama_api,
    openai_api,
    responses_api,
    steering_api,
    tokens_api,
)
from finesteer_local.server.metrics import Measured, Metrics
from finesteer_local.server.schemas import ERRORS
from finesteer_local.server.security import Guard
from finesteer_local.server.service import Service
from finesteer_local.server.settings import ServerSettings

STATIC = Path(__file__).parent / "static"
HINT = "This is FineSteer Local's server. The page is not part of this build; the API is below /v1.\n"


class Health(BaseModel):
    """Whether the model is loaded, and answers."""

    status: Literal["ok", "loading", "stalled", "failed", "stopping"]


def create_app(settings: ServerSettings) -> FastAPI:
    """The server's application; `app.state.service` is its model. Loading begins when the application starts."""
    # Without this, sse-starlette ends running answers as soon as the server is asked to stop.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    metrics = Metrics()
    service = Service(settings, metrics)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="FineSteer Local",
        version=__version__,
        summary="GGUF models steered per request",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its scripts come from other hosts
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    errors.install(app)
    for api in (
        openai_api,
        completions_api,
        responses_api,
        moderations_api,
        steering_api,
        corrections_api,
        tokens_api,
        ollama_api,
    ):
        app.include_router(api.router(service))
    _add_status(app, service, metrics)
    _add_page(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Measured, metrics=metrics)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _add_status(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get(
        "/health", response_model=Health, responses={503: {"model": Health, "description": "Not yet, or no more."}}
    )
    async def health() -> Response:
        """Whether requests can be answered."""
        if service.is_ready:
            return JSONResponse({"status": "ok"})
        if (trouble := service.trouble) is not None:
            return JSONResponse({"status": "stalled" if isinstance(trouble, StalledError) else "failed"}, 503)
        status = "stopping" if service.is_stopping else "loading"
        return JSONResponse({"status": status}, 503, {"Retry-After": str(errors.RETRY_SECONDS)})

    text: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The metrics."}
    forbidden: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403)}

    @app.get("/metrics", response_class=PlainTextResponse, responses={200: text, **forbidden})
    async def get_metrics() -> Response:
        """What the server counted, for Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    index = STATIC / "index.html"

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        if index.is_file():
            return FileResponse(index, headers={"Cache-Control": "no-cache"})
        return PlainTextResponse(HINT)

    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the answers that FastAPI believes in and we never give."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            license_info=app.license_info,
            routes=app.routes,
        )
        for methods in found["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema
