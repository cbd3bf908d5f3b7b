"""A real server on a free port, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from finesteer_local.server.app import create_app
from finesteer_local.server.service import Service
from finesteer_local.server.settings import Limits, ServerSettings

SECONDS = 60.0


@dataclass
class Served:
    url: str
    service: Service
    http: httpx.Client
    server: uvicorn.Server

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def chat(self, text: str = "Hello there", **fields: Any) -> httpx.Response:
        """A greedy chat of one question, eight tokens unless told otherwise."""
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 8, **fields}
        return self.post("/v1/chat/completions", {k: v for k, v in body.items() if v is not ...})

    def wait_until_idle(self) -> None:
        """Until no request has a place or waits for one."""
        for _ in wait_until():
            load = self.service.model.engine.load
            if not load.running and not load.waiting:
                return


def wait_until() -> Iterator[None]:
    """Try again and again; fails in the end."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        yield
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@contextmanager
def served(path: Path, *, wait: bool = True, limits: Limits | None = None, **settings: Any) -> Iterator[Served]:
    """Serve the model at `path`, under the name `tiny` unless told otherwise."""
    settings = {"name": "tiny", "threads": 1, **settings}
    app = create_app(ServerSettings(path=path, limits=limits or Limits(), **settings))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    port = listener.getsockname()[1]
    key = settings.get("api_key")
    headers = {"Authorization": f"Bearer {key}".encode()} if key else {}  # not only ASCII
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, headers=headers) as http:
            found = Served(str(http.base_url), app.state.service, http, server)
            for _ in wait_until():
                if server.started and (not wait or http.get("/health").status_code == 200):
                    break
            yield found
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def events(response: httpx.Response) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
