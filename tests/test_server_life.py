"""Loading, queueing, clients that go away, and the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from finesteer_local.errors import ModelError
from finesteer_local.server import service as service_module
from finesteer_local.server.settings import Limits
from serving import SECONDS, Served, events, served, wait_until
from tiny import make_profile

ENDLESS = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny, limits=Limits(parallel=1, queue=1), ctx=100_000, profiles=(make_profile(tiny),)) as found:
        yield found


def test_while_the_model_is_loaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_load = threading.Event()
    load = service_module.open_service_model

    def slowly(settings: Any) -> Any:
        assert may_load.wait(SECONDS)
        return load(settings)

    monkeypatch.setattr(service_module, "open_service_model", slowly)
    with served(tiny, wait=False) as server:
        health = server.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        for answer in (
            server.chat(),
            server.http.get("/v1/models"),
            server.http.get("/v1/steering"),
            server.http.get("/api/tags"),
            server.post("/api/chat", {"model": "tiny"}),
        ):
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert "being loaded" in str(answer.json()["error"])
        assert "finesteer_model_loaded 0.0" in server.http.get("/metrics").text
        assert server.chat(temperature=-1).status_code == 400  # wrong is wrong at any time
        may_load.set()
        for _ in wait_until():
            if server.http.get("/health").json() == {"status": "ok"}:
                break
        assert server.chat().status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with served(tmp_path / "bad.gguf", wait=False) as server:
        server.service.on_failure = lambda: setattr(server.server, "should_exit", True)
        for _ in wait_until():
            if server.service.failure is not None:
                break
        assert isinstance(server.service.failure, ModelError)


def test_a_full_queue(server: Served) -> None:
    alone = server.chat().json()["choices"]
    with server.http.stream("POST", "/v1/chat/completions", json=ENDLESS) as running, ThreadPoolExecutor() as pool:
        lines = running.iter_lines()  # httpx hangs up when this goes
        next(lines)  # it has the place
        waiting = pool.submit(server.chat)
        for _ in wait_until():
            if server.service.model.engine.load.waiting:
                break
        full = server.chat()
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) > 0
        # Of a request with several prompts all are taken, or none.
        assert server.post("/v1/completions", {"prompt": ["a", "b"]}).status_code == 429
        running.close()  # the client goes away: the one that waits has its place
        assert waiting.result().json()["choices"] == alone
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/completions"])
def test_a_client_that_goes_away_frees_its_place(server: Served, path: str, stream: bool) -> None:
    body: dict[str, Any] = {**ENDLESS, "model": "tiny", "stream": stream}
    if path == "/v1/completions":
        body.update(prompt="Go on", max_tokens=90_000)
        del body["messages"]
    elif path == "/api/chat":
        body["options"] = {"temperature": body.pop("temperature")}
    before = server.http.get("/metrics").text
    line = socket.create_connection(("127.0.0.1", server.http.base_url.port))
    content = json.dumps(body).encode()
    line.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    for _ in wait_until():
        if server.service.model.engine.load.running:
            break
    line.close()
    server.wait_until_idle()

    def cancelled(page: str) -> float:
        found = [line for line in page.splitlines() if line.startswith('finesteer_answers_total{reason="cancelled"}')]
        return float(found[0].split()[-1]) if found else 0.0

    for _ in wait_until():
        if cancelled(server.http.get("/metrics").text) == cancelled(before) + 1:
            break


def test_a_client_that_goes_away_while_it_waits(server: Served) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json=ENDLESS) as running:
        lines = running.iter_lines()
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=ENDLESS, timeout=0.3)
        assert server.service.model.engine.load.running == 1
        for _ in wait_until():
            if not server.service.model.engine.load.waiting:
                break
    server.wait_until_idle()


def test_the_time_limit_cuts_an_answer(tiny: Path) -> None:
    limits = Limits(parallel=1, seconds=0.4)
    with served(tiny, limits=limits, ctx=200_000) as server:
        body = {**ENDLESS, "max_tokens": 190_000}
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda stream: server.chat(max_tokens=190_000, stream=stream), (False, False)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([200, 200], [200, 503])
        for answer in answers:
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["finish_reason"] == "length"
            else:
                assert answer.json()["error"]["code"] == "timeout"
        with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
            data = events(response)
        assert data[-1] == "[DONE]" and json.loads(data[-2])["choices"][0]["finish_reason"] == "length"
        server.wait_until_idle()


def test_one_requests_steering_never_touches_anothers(server: Served, tiny: Path) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"steering": False},
        {"steering": {"profiles": [{"name": "test", "strength": 3}]}},
        {"steering": {"profiles": [{"name": "test", "strength": 0.5}]}},
        {"temperature": -1},
    ]
    alone = [server.chat(**way) for way in ways]
    assert len({answer.text.split('"message":')[-1][:60] for answer in alone}) == len(ways)
    with served(tiny, limits=Limits(parallel=4, queue=64), profiles=(make_profile(tiny),)) as crowd:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: crowd.chat(**ways[i % len(ways)]), range(40)))
        for i, answer in enumerate(found):
            expected = alone[i % len(ways)]
            assert answer.status_code == expected.status_code
            for field in ("choices", "steering", "error"):
                assert answer.json().get(field) == expected.json().get(field)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_sigterm_finishes_what_runs(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finesteer_local", "serve", str(tiny), "--port", "0", "--parallel", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert "Ready" in process.stdout.readline()
        body = {**ENDLESS, "max_tokens": 900}
        with httpx.Client(base_url=url, timeout=SECONDS) as client, ThreadPoolExecutor() as pool:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                waiting = pool.submit(
                    lambda: httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=SECONDS)
                )
                for _ in wait_until():
                    if "finesteer_requests_waiting 1.0" in client.get("/metrics").text:
                        break
                process.send_signal(signal.SIGTERM)
                data = [line for line in lines if line.startswith("data: ")]
            assert data[-1] == "data: [DONE]"
            usage = json.loads(data[-2].removeprefix("data: "))["choices"][0]
            assert usage["finish_reason"] == "length"
            assert waiting.result().status_code == 200
        assert process.wait(SECONDS) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
