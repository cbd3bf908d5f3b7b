"""Whom the server listens to: names, origins, keys, sizes."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from finesteer_local.errors import FineSteerError
from finesteer_local.server.settings import Limits, ServerSettings
from serving import Served, served

KEY = "sésame, öffne dich"
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny, limits=Limits(body=4096, messages=3), host_names=frozenset({"chat.example.org"})) as found:
        yield found


@pytest.fixture(scope="module")
def locked(tiny: Path) -> Iterator[Served]:
    with served(tiny, api_key=KEY) as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nothing", "/metrics", "/api/tags"])
def test_every_answer_has_the_headers(server: Served, path: str) -> None:
    for answer in (server.http.get(path), server.http.get(path, headers={"Host": "evil.example"})):
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("chat.example.org", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.nip.io", 403),
        ("192.168.0.7", 403),
        ("user@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_only_its_own_names(server: Served, host: str, status: int) -> None:
    answer = server.http.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["type"] == "permission_error"


def test_where_others_reach_it_any_address_is_its_own() -> None:
    settings = ServerSettings(Path("m.gguf"), "m", host="0.0.0.0", api_key="k")
    assert settings.knows_host("192.168.0.7") and settings.knows_host("localhost")
    assert not settings.knows_host("evil.example")
    assert ServerSettings(Path("m.gguf"), "m", host="box.lan", api_key="k").knows_host("box.lan")


def test_others_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "box.lan", ""):
        with pytest.raises(FineSteerError, match="give an --api-key"):
            ServerSettings(Path("m.gguf"), "m", host=host)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        ServerSettings(Path("m.gguf"), "m", host=host)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "SELF"}, 200),
        ({"Origin": "SELF", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_origins_change_nothing(server: Served, headers: dict[str, str], status: int) -> None:
    headers = {name: value.replace("SELF", server.url.rstrip("/")) for name, value in headers.items()}
    assert server.post("/v1/chat/completions", BODY, headers=headers).status_code == status
    assert server.http.put("/v1/steering", json={"profiles": []}, headers=headers).status_code == status
    chat = {"model": "tiny", "messages": BODY["messages"], "stream": False, "options": {"num_predict": 1}}
    assert server.post("/api/chat", chat, headers=headers).status_code == status


def test_a_page_cannot_ask_whether_it_may(server: Served) -> None:
    ask = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = server.http.request("OPTIONS", "/v1/chat/completions", headers=ask)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_form_is_no_request(server: Served) -> None:
    """What a page could send without asking: a form, or text."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = server.http.post("/v1/chat/completions", content=json.dumps(BODY), headers={"Content-Type": kind})
        assert answer.status_code == 400 and "application/json" in answer.json()["error"]["message"]


def test_without_the_key_there_are_the_page_and_health_alone(locked: Served) -> None:
    paths = locked.http.get("/openapi.json").json()["paths"]
    with httpx.Client(base_url=locked.url, timeout=20) as stranger:
        for path, methods in paths.items():
            for method in methods:
                answer = stranger.request(method.upper(), path)
                assert answer.status_code == (200 if path == "/health" else 401), path
        for path in ("/openapi.json", "/nothing", "//v1/models", "/static/../v1/models", "/v1/models/"):
            assert stranger.get(path).status_code in (401, 404)
        assert stranger.get("/").status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic abc", "Bearer \xff", "sésame"])
def test_a_wrong_key(locked: Served, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    connection = http.client.HTTPConnection("127.0.0.1", locked.http.base_url.port, timeout=20)
    connection.request("GET", "/v1/models", headers=headers)  # type: ignore[arg-type]
    answer = connection.getresponse()
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert json.loads(answer.read())["error"]["code"] == "invalid_api_key"
    connection.close()


def test_the_key_opens(locked: Served) -> None:
    assert locked.http.get("/v1/models").status_code == 200
    assert locked.post("/v1/chat/completions", BODY).status_code == 200


def test_a_body_that_says_it_is_too_large(server: Served) -> None:
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 4096}]})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_a_body_that_grows_too_large(server: Served) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 1000

    try:
        answer: Any = server.http.post(
            "/v1/chat/completions", content=parts(), headers={"Content-Type": "application/json"}
        )
    except OSError:
        answer = None  # it hung up while we were sending
    assert answer is None or answer.status_code == 413


def test_a_body_that_does_not_come(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesteer_local.server.security._BODY_SECONDS", 0.2)
    with served(tiny) as server, socket.create_connection(("127.0.0.1", server.http.base_url.port), 20) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert line.recv(100).startswith(b"HTTP/1.1 408 ")


def test_too_many_messages(server: Served) -> None:
    message = {"role": "user", "content": "x"}
    assert server.post("/v1/chat/completions", {**BODY, "messages": [message] * 3}).status_code == 200
    answer = server.post("/v1/chat/completions", {**BODY, "messages": [message] * 4})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
