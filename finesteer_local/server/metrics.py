"""What the server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finesteer_local.runtime.batch import Finished
from finesteer_local.runtime.batch.answer import CANCELLED
from finesteer_local.steering import Decision

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "finesteer_http_requests", "HTTP requests", ["method", "path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "finesteer_http_request_seconds", "Until the answer's end", ["path"], buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter(
            "finesteer_tokens", "Tokens: read of prompts, cached of prompts, of answers", ["kind"], registry=registry
        )
        self.answers = Counter("finesteer_answers", "Answers by how they ended", ["reason"], registry=registry)
        self.decisions = Counter(
            "finesteer_gate_decisions", "Decisions of a profile's gate", ["profile", "open"], registry=registry
        )
        self.shown = Counter(
            "finesteer_answers_shown",
            "Answers that showed a profile what their prompts hid, by what was done",
            ["profile", "action"],
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "finesteer_queue_seconds", "Until a request had a place", buckets=_SECONDS, registry=registry
        )
        self.first_token_seconds = Histogram(
            "finesteer_first_token_seconds", "From a place to the first token", buckets=_SECONDS, registry=registry
        )
        self.answer_seconds = Histogram(
            "finesteer_answer_seconds", "From the first token to the last", buckets=_SECONDS, registry=registry
        )

    def decided(self, decisions: Iterable[Decision]) -> None:
        """Count what the gates of one request decided."""
        for decision in decisions:
            self.decisions.labels(decision.profile, str(decision.open).lower()).inc()

    def finished(self, event: Finished) -> None:
        """Count a request that came to its end; a cancelled one is counted by who cancels it."""
        if event.reason != CANCELLED:
            self.answers.labels(event.reason).inc()
        for decision in event.decisions:
            if decision.answer is not None and decision.answer.opened_at is not None:
                self.shown.labels(decision.profile, decision.answer.action).inc()
        self.tokens.labels("prompt").inc(event.n_prompt - event.n_cached)
        self.tokens.labels("cached").inc(event.n_cached)
        self.tokens.labels("answer").inc(event.n_answer)
        self.queue_seconds.observe(event.queue_seconds)
        self.first_token_seconds.observe(event.prompt_seconds)
        self.answer_seconds.observe(event.answer_seconds)

    def watch(self, load: Callable[[], dict[str, float]]) -> None:
        """Add gauges, by name, that are read when the page is."""
        self.registry.register(_Load(load))

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Load(Collector):
    def __init__(self, load: Callable[[], dict[str, float]]) -> None:
        self._load = load

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, value in self._load().items():
            yield GaugeMetricFamily(f"finesteer_{name}", name.replace("_", " "), value=value)


class Measured:
    """ASGI middleware that counts requests by the route's own path, so that no client can invent labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "other"
            method = scope["method"] if route is not None else "other"
            self._metrics.requests.labels(method, path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - began)
