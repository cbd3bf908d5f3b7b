"""A server for the page without a model: answers, gates and failures by rule.

    python tests/page_server.py --port 8099 [--slow 0.05] [--hold] [--key KEY]

A question that contains "secret" opens the gate of `safety`, one with "hurt myself" is refused at once, and the answer
to one with "cipher" shows what it hid. What a test wants of the next answers it sets on `Mode`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parents[1] / "finesteer_local" / "server" / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PROFILES: list[dict[str, Any]] = [
    {
        "name": "safety",
        "description": "Declines requests that would do harm, plain or wrapped, and leaves everything else untouched.",
        "strength": 1.15,
        "scope": "turn",
        "gate": {"kind": "contrastive", "layer": 13, "threshold": 0.673},
        "layers": [13],
        "experts": ["confidential/bias", "identity theft/other", "fraud/privacy", "roleplay/drugs"],
        "takes_corrections": True,
    },
    {
        "name": "brief",
        "description": "Answers in fewer words.",
        "strength": 0.8,
        "scope": "response",
        "gate": {"kind": "always", "layer": 10, "threshold": 0.0},
        "layers": [10, 12],
        "experts": ["short", "plain"],
        "takes_corrections": False,
    },
]
REFUSAL = "I can't help with that. Reading someone's mail without their consent is illegal and harms them."
WORDS = "I'm glad that you told me. You don't have to be alone with this: please call someone whom you trust."
HELD_AT = 10  # chunks of six letters: within every answer here
SHOWN = {"score": 3.1, "opened_at": 24, "taken_back": 18}
ANSWER = """A **hash table** keeps pairs of a key and a value, and finds a value in about the same time
however many there are.

1. A *hash function* turns the key into a number.
2. The number, modulo the size of the table, is the place to look.
3. Two keys may share a place; then a short list is searched.

```python
def place(key: str, size: int) -> int:
    # the same key always gives the same place
    return hash(key) % size

table = [[] for _ in range(8)]
table[place("tea", 8)].append(("tea", 3.20))
```

| operation | usual | worst |
| --- | ---: | ---: |
| find | `O(1)` | `O(n)` |
| insert | `O(1)` | `O(n)` |
"""


@dataclass
class Mode:
    """What the next answers are like; tests change it while the server runs."""

    key: str = ""
    slow: float = 0.0  # seconds between chunks, to look at
    held: bool = False  # answers wait within, while this is so
    untold: bool = False  # what the profiles are is not told, while this is so
    text: str = ""  # instead of the usual answer
    fail: tuple[int, str] | None = None  # status and message of the next answer, once
    retry_after: int | None = None
    break_after: int | None = None  # chunks, then an error event, once
    health: str = "ok"
    required: tuple[str, ...] = ()
    policy: str = "steer"  # what is done about a question that opens the gate of `safety`
    on_answer: str = "rewind"
    corrections: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id, as they were sent
    keeps_corrections: bool = True
    profiles: list[dict[str, Any]] = field(default_factory=lambda: [{"name": "safety", "strength": 1.15}])
    scope: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies of chat requests
    unfinished: int = 0  # clients whose answer is not complete: under way, or given up
    given_up: int = 0
    sent: int = 0  # chunks


def error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status, headers)


def score_of(question: str) -> float:
    """Log-odds like the real gate's: far below the threshold for most questions, above it for secrets."""
    if "secret" in question.lower() or "no rules" in question.lower():
        return 2.4
    return -3.0 + (sum(question.encode()) % 30) / 10


def decide(
    profiles: list[dict[str, Any]], scope: str | None, question: str, policy: str = "steer", on_answer: str = "rewind"
) -> list[dict[str, Any]]:
    decisions = []
    for wanted in profiles:
        profile = next(p for p in PROFILES if p["name"] == wanted["name"])
        always = profile["gate"]["kind"] == "always"
        score = 1.0 if always else score_of(question)
        threshold = profile["gate"]["threshold"]
        opened = always or score > threshold
        refused = not always and "hurt myself" in question
        action = "refuse" if refused else ("steer" if always else policy) if opened else None
        kinds = [("self_harm", 0.81)] if refused else [("privacy", 0.71 if opened else 0.01), ("cybercrime", 0.22)]
        steers = opened and action == "steer"
        weights = [0.46, 0.31, 0.14, 0.09] if len(profile["experts"]) == 4 else [0.6, 0.4]
        decisions.append(
            {
                "profile": profile["name"],
                "g": min(1.0, max(0.0, (score - threshold) / 0.25)) if not always else 1.0,
                "open": steers and wanted["strength"] > 0,
                "flagged": action not in (None, "leave"),
                "action": action,
                "kinds": [] if always else [{"name": n, "probability": p} for n, p in [*kinds, ("fraud", 0.04)]],
                "score": score,
                "threshold": threshold,
                "strength": wanted["strength"],
                "answer_strength": 0.5,
                "scope": scope or profile["scope"],
                "gate_layer": profile["gate"]["layer"],
                "layers": profile["layers"],
                "experts": [
                    {"name": n, "weight": w} for n, w in zip(profile["experts"], weights, strict=True) if steers
                ],
                "answer": None
                if always or opened or refused
                else {"action": on_answer, "threshold": 2.0, "score": None, "opened_at": None, "taken_back": 0},
            }
        )
    return decisions


def question_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def decisions_of(mode: Mode, body: dict[str, Any]) -> list[dict[str, Any]]:
    steering = body.get("steering")
    if steering is False:
        return []
    steering = steering or {"profiles": mode.profiles, "scope": mode.scope}
    return decide(steering["profiles"], steering.get("scope"), question_of(body), mode.policy, mode.on_answer)


async def stream(mode: Mode, body: dict[str, Any]) -> AsyncIterator[bytes]:
    def event(data: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(data)}\r\n\r\n".encode()

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event({"id": "x", "object": "chat.completion.chunk", "model": "smollm2", "choices": [choice], **more})

    decisions = decisions_of(mode, body)
    [safety] = [d for d in decisions if d["profile"] == "safety"] or [None]
    shows = safety is not None and safety["answer"] is not None and "cipher" in question_of(body)
    rewinds = shows and mode.on_answer == "rewind"
    refuses = safety is not None and (safety["open"] or rewinds)
    words = WORDS if safety is not None and safety["action"] == "refuse" else REFUSAL if refuses else ANSWER
    text = mode.text or words
    pieces = [text[i : i + 6] for i in range(0, len(text), 6)]
    if body.get("max_tokens"):
        pieces = pieces[: body["max_tokens"]]
    stop_at, mode.break_after = mode.break_after, None
    yield chunk({"role": "assistant", "content": ""}, steering={"decisions": decisions})
    mode.unfinished += 1  # until it turns out that the client stayed
    if shows:
        taken = {} if rewinds else {"taken_back": 0}
        told = {**safety, "answer": {**safety["answer"], **SHOWN, **taken}, "open": rewinds, "g": float(rewinds)}
        told["action"] = "steer" if rewinds else None
        others = [d for d in decisions if d is not safety]
        yield chunk({}, steering={"decisions": [told, *others]})
    for i, piece in enumerate(pieces):
        if i == stop_at:
            yield event(
                {"error": {"message": "The engine failed.", "type": "server_error", "param": None, "code": None}}
            )
            mode.unfinished -= 1
            return
        await asyncio.sleep(mode.slow)
        while mode.held and i >= HELD_AT:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                mode.given_up += 1
                raise
        mode.sent += 1
        yield chunk({"content": piece})
    yield b": ping\r\n\r\n"
    yield chunk({}, "length" if body.get("max_tokens") else "stop")
    usage = {"prompt_tokens": 40, "completion_tokens": len(pieces), "total_tokens": 40 + len(pieces)}
    yield event({"id": "x", "object": "chat.completion.chunk", "model": "smollm2", "choices": [], "usage": usage})
    yield b"data: [DONE]\r\n\r\n"
    mode.unfinished -= 1


def application(mode: Mode) -> Starlette:
    def allowed(request: Request) -> bool:
        return not mode.key or request.headers.get("authorization") == f"Bearer {mode.key}"

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": mode.health}, 200 if mode.health == "ok" else 503)

    async def models(request: Request) -> Response:
        if not allowed(request):
            return error(401, "API key missing or wrong")
        return JSONResponse({"object": "list", "data": [{"id": "smollm2", "object": "model", "context": 8192}]})

    async def profiles(request: Request) -> Response:
        if not allowed(request):
            return error(401, "API key missing or wrong")
        while mode.untold:
            await asyncio.sleep(0.01)
        active = {p["name"] for p in mode.profiles}
        states = [{**p, "active": p["name"] in active, "required": p["name"] in mode.required} for p in PROFILES]
        for state in states:
            state["takes_corrections"] &= mode.keeps_corrections
        return JSONResponse({"profiles": states})

    async def steering(request: Request) -> Response:
        if not allowed(request):
            return error(401, "API key missing or wrong")
        if request.method == "PUT":
            state = await request.json()
            mode.profiles, mode.scope = state["profiles"], state["scope"]
        return JSONResponse({"profiles": mode.profiles, "scope": mode.scope, "required": list(mode.required)})

    async def explain(request: Request) -> Response:
        return JSONResponse({"decisions": decisions_of(mode, await request.json())})

    async def correct(request: Request) -> Response:
        if request.method == "DELETE":
            if mode.corrections.pop(request.path_params["id"], None) is None:
                return error(404, "no such correction came through this server")
            return JSONResponse({"id": request.path_params["id"], "deleted": True})
        body = await request.json()
        if mode.fail:
            (status, message), mode.fail = mode.fail, None
            return error(status, message)
        mode.corrections["0badcafe"] = body
        return JSONResponse({"id": "0badcafe", "profile": body["profile"], "should": body["should"]})

    async def chat(request: Request) -> Response:
        if not allowed(request):
            return error(401, "API key missing or wrong")
        body = await request.json()
        mode.asked.append(body)
        if mode.fail:
            (status, message), mode.fail = mode.fail, None
            headers = {} if mode.retry_after is None else {"Retry-After": str(mode.retry_after)}
            return error(status, message, headers)
        return StreamingResponse(stream(mode, body), media_type="text/event-stream")

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/steering/profiles", profiles),
            Route("/v1/steering", steering, methods=["GET", "PUT"]),
            Route("/v1/steering/explain", explain, methods=["POST"]),
            Route("/v1/steering/corrections", correct, methods=["POST"]),
            Route("/v1/steering/corrections/{id}", correct, methods=["DELETE"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
    )

    async def with_headers(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        await app(scope, receive, sending)

    return with_headers  # type: ignore[return-value]


class PageServer:
    """The server in a thread of the test."""

    def __init__(self) -> None:
        self.mode = Mode()
        config = uvicorn.Config(application(self.mode), port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> PageServer:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(5)

    def reset(self) -> None:
        self.mode.__init__()  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--key", default="")
    parser.add_argument("--require", action="append", default=[])
    options = parser.parse_args()
    mode = Mode(key=options.key, slow=options.slow, held=options.hold, required=tuple(options.require))
    uvicorn.run(application(mode), port=options.port, log_level="error", lifespan="off")


if __name__ == "__main__":
    main()
