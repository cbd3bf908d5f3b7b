"""What goes wrong around a server: full disks, killed clients, a killed server, a profile replaced while in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from finesteer_local import catalog
from serving import SECONDS, Served, served, wait_until
from tiny import make_profile

resource = pytest.importorskip("resource", reason="this system cannot limit files")

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 0, "max_tokens": 8}


@contextmanager
def started(tiny: Path, *, port: int = 0, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`finesteer-local serve` as a process of its own, with its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "finesteer_local", "serve", str(tiny), "--port", str(port), "--verbose"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    process = subprocess.Popen(command, text=True, **streams)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in wait_until():
            assert process.poll() is None
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                continue
        yield process, url
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def text(url: str, **fields: Any) -> str:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**BODY, **fields}, timeout=SECONDS)
    return str(answer.raise_for_status().json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny) as found:
        yield found


def no_file_may_grow() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_a_full_disk(tiny: Path, server: Served, home: Path, tmp_path: Path) -> None:
    """Nothing that a server writes is needed: neither its cache nor its log."""
    with (tmp_path / "log").open("w") as log:
        options: dict[str, Any] = {"stdout": log, "stderr": log, "preexec_fn": no_file_may_grow}
        with started(tiny, **options) as (process, url):
            assert text(url) == text(server.url)
            assert text(url, max_tokens=100) == text(server.url, max_tokens=100)
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)
    assert (tmp_path / "log").read_text() == ""
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_on_a_full_disk(tiny: Path, server: Served) -> None:
    with open("/dev/full", "w") as full, started(tiny, stdout=full, stderr=full) as (_, url):
        assert text(url) == text(server.url)


def test_folders_that_cannot_be_made(tiny: Path, server: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with started(tiny, env={**os.environ, "FINESTEER_HOME": str(tmp_path / "file" / "home")}) as (_, url):
        assert text(url) == text(server.url)
        assert httpx.get(f"{url}/v1/steering/profiles").json() == {"profiles": []}


CLIENT = """
import httpx, sys
body = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 0, "stream": True}
with httpx.stream("POST", sys.argv[1] + "/v1/chat/completions", json=body, timeout=60) as response:
    for line in response.iter_lines():
        print(line, flush=True)
"""


def test_killed_clients(tiny: Path) -> None:
    with served(tiny, ctx=100_000) as server:
        alone = text(server.url)
        clients = [
            subprocess.Popen([sys.executable, "-c", CLIENT, server.url], stdout=subprocess.PIPE, text=True)
            for _ in range(6)  # two wait for a place
        ]
        for _ in wait_until():
            if server.service.model.engine.load.waiting == 2:
                break
        for client in clients:
            client.kill()
            client.communicate()
        server.wait_until_idle()
        assert text(server.url) == alone


def test_a_killed_server_comes_back_at_its_address(tiny: Path) -> None:
    port = free_port()
    with started(tiny, port=port) as (process, url):
        alone = text(url)
        with (
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True, "max_tokens": 900}) as cut,
        ):
            lines = cut.iter_lines()
            next(lines)
            process.kill()
            for _ in lines:
                pass
        process.wait()
    with started(tiny, port=port) as (_, url):
        assert text(url) == alone


def test_a_profile_that_is_replaced_while_in_use(server: Served, tiny: Path, tmp_path: Path) -> None:
    """Whoever has begun goes on with the one it began with, whatever becomes of the file."""
    steering: dict[str, Any] = {"steering": {"profiles": [{"name": "shy", "strength": 3}]}, "max_tokens": 400}

    def put(seed: int) -> Path:
        make_profile(tiny, name="shy", seed=seed).save(tmp_path / "new.gguf")
        return catalog.add_profile(tmp_path / "new.gguf", replace=True)

    put(8)
    second = text(server.url, **steering)
    path = put(7)
    first = text(server.url, **steering)
    assert first != second
    for replace in (lambda: put(8), lambda: shutil.copyfile(tiny, path), path.unlink):
        put(7)
        with server.http.stream("POST", "/v1/chat/completions", json={**BODY, **steering, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            replace()
            data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        pieces = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in data[:-1]]
        assert "".join(pieces) == first
    put(8)
    assert text(server.url, **steering) == second
