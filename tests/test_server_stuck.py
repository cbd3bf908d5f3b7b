"""A server whose engine is stuck says so, and can be ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from finesteer_local.errors import StalledError
from finesteer_local.runtime.batch.scheduler import Scheduler
from finesteer_local.server import requests
from finesteer_local.server.settings import Limits
from serving import SECONDS, served, wait_until

# The command line, with an engine that is caught in C and never comes back.
_STUCK = """
import ctypes, sys
from finesteer_local.cli import main
from finesteer_local.runtime.batch.scheduler import Scheduler
how = sys.argv[1]
def step(self):
    self._admit()
    if how == "fails":
        raise KeyError("odd")
    ctypes.CDLL(None).sleep(1000)
Scheduler.step = step
sys.argv = ["finesteer-local", "serve", *sys.argv[2:], "--port", "0", "--threads", "1"]
main()
"""


def test_a_stuck_engine_is_told_of(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, step = threading.Event(), Scheduler.step
    limits = Limits(parallel=1, stall=1.0)
    with served(tiny, limits=limits) as server, ThreadPoolExecutor() as pool:
        wanted = server.chat().json()["choices"]
        monkeypatch.setattr(Scheduler, "step", lambda self: self._admit() or (goes_on.wait(60) and step(self)))
        for answer in [pool.submit(server.chat, stream=stream) for stream in (False, False, True)]:
            error = answer.result()
            assert error.status_code == 503 and error.json()["error"]["code"] == "stalled"
        health = server.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "stalled"})
        assert server.chat().status_code == 503
        goes_on.set()
        for _ in wait_until():
            if server.http.get("/health").status_code == 200:
                break
        assert server.chat().json()["choices"] == wanted


def test_a_failed_engine_is_told_of(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, fails = threading.Event(), threading.Event()
    step = Scheduler.step
    body = {"messages": [{"role": "user", "content": "Go on"}], "stream": True}

    def failing(self: Scheduler) -> None:
        step(self)
        if fails.is_set():
            raise KeyError("odd")

    monkeypatch.setattr(Scheduler, "step", failing)
    with served(tiny, limits=Limits(parallel=1), ctx=100_000) as server, ThreadPoolExecutor() as pool:
        server.service.on_failure = ended.set
        with server.http.stream("POST", "/v1/chat/completions", json=body) as running:
            lines = running.iter_lines()
            next(lines)
            waiting = [pool.submit(server.chat, stream=stream) for stream in (False, False, True)]
            for _ in wait_until():
                if server.service.model.engine.load.waiting == 3:
                    break
            fails.set()
            *_, last = filter(None, lines)
        errors = [json.loads(last.removeprefix("data: "))["error"]]
        for answer in [*(asked.result() for asked in waiting), server.chat()]:
            assert answer.status_code == 503
            errors.append(answer.json()["error"])
        assert {error["code"] for error in errors} == {"engine_failed"}
        [message] = {error["message"] for error in errors}
        assert message == "the model's engine failed and has stopped (KeyError: 'odd'); restart it"
        assert ended.wait(SECONDS) and str(server.service.failure) == message
        server.service.stop()  # as the server does when it ends
        health = server.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        assert server.chat().json()["error"] == errors[0]


def test_a_request_that_cannot_be_prepared(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    make = requests.chat_request
    with served(tiny, limits=Limits(stall=0.5)) as server:
        monkeypatch.setattr(requests, "chat_request", lambda *a, **k: goes_on.wait(60) and make(*a, **k))
        stuck = server.chat()
        assert stuck.status_code == 503 and stuck.json()["error"]["code"] == "stalled"
        assert server.http.get("/health").json() == {"status": "stalled"}
        goes_on.set()
        for _ in wait_until():
            if server.http.get("/health").status_code == 200:
                break
        assert server.chat().status_code == 200


@contextmanager
def command(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    given = [sys.executable, "-c", _STUCK, *map(str, arguments)]
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert "Ready" in process.stdout.readline()
        yield process, url
    finally:
        process.kill()
        process.communicate()


def ask(url: str) -> int:
    body = {"prompt": "Hello", "max_tokens": 4}
    try:
        return httpx.post(f"{url}/v1/completions", json=body, timeout=SECONDS).status_code
    except httpx.TransportError:  # the process was ended
        return 0


def test_a_step_that_fails_ends_the_command_with_1(tiny: Path) -> None:
    with command("fails", tiny) as (process, url):
        assert ask(url) == 503
        assert process.wait(SECONDS) == 1
        assert process.stderr is not None
        assert "Error: the model's engine failed and has stopped (KeyError: 'odd')" in process.stderr.read()


def test_an_engine_that_stays_stuck_ends_the_command_with_1(tiny: Path) -> None:
    with command("sticks", tiny, "--stall-limit", "1") as (process, url):
        assert ask(url) == 503
        assert process.wait(SECONDS) == 1
        assert process.stderr is not None
        assert "Error: the model's engine does not move" in process.stderr.read()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it(tiny: Path, first: signal.Signals, second: signal.Signals) -> None:
    with command("sticks", tiny) as (process, url), ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, url)
        for _ in wait_until():
            if "finesteer_requests_running 1.0" in httpx.get(f"{url}/metrics").text:
                break
        process.send_signal(first)
        time.sleep(1)
        assert process.poll() is None  # it waits for what runs
        process.send_signal(second)
        assert process.wait(30) == 1
        assert asked.result() in (0, 500, 503)  # uvicorn cancels it


def test_the_failure_of_a_stuck_server(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    with served(tiny, limits=Limits(stall=0.5)) as server:
        ended = threading.Event()
        server.service.on_failure = ended.set
        monkeypatch.setattr(Scheduler, "step", lambda self: self._admit() or goes_on.wait(60))
        assert server.chat().status_code == 503
        assert ended.wait(SECONDS) and isinstance(server.service.failure, StalledError)
        goes_on.set()
