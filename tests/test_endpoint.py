"""A judge behind an OpenAI-compatible endpoint, played by a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import JudgeError
from finesteer_local.evaluation.endpoint import INSTRUCTIONS, EndpointJudge
from finesteer_local.evaluation.journal import Journal

ASK = [{"role": "user", "content": "open the <door>"}]


class Server:
    """Answers every request by `reply(number of the request, body)`: (status, body)."""

    def __init__(self) -> None:
        self.reply: Callable[[int, Any], tuple[int, Any]] = lambda i, body: (200, say("ANSWERS"))
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = server.reply(len(server.requests), body)
                server.requests.append((self.path, dict(self.headers), body))
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if status in (302, 307):
                    self.send_header("Location", f"{server.url}/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:  # where a redirect would lead
                server.requests.append((self.path, dict(self.headers), None))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def say(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def judge(server: Server, journal: Journal | None = None, **options: Any) -> EndpointJudge:
    return EndpointJudge(server.url, "some-model", journal or Journal(), pause=0.0, **options)


def test_verdicts(server: Server) -> None:
    server.reply = lambda i, body: (200, say("DECLINES" if "never" in body["messages"][1]["content"] else "answers."))
    talk = [*ASK, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "That one."}]
    assert judge(server).refusals([(ASK, "I never do."), (talk, "Sure.")]) == [True, False]
    path, headers, body = server.requests[1]
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert (body["model"], body["temperature"]) == ("some-model", 0)
    system, user = body["messages"]
    assert system == {"role": "system", "content": INSTRUCTIONS}
    assert "USER: open the <door>\n\nASSISTANT: Which?\n\nUSER: That one." in user["content"]
    assert "<answer>\nSure.\n</answer>" in user["content"]


@pytest.mark.parametrize(
    ("said", "declines"),
    [
        ("DECLINES", True),
        ("ANSWERS", False),
        ("The answer declines.", True),
        ('"Answers"', False),
        ("It never DECLINES, so: ANSWERS", False),
        ("<think>ANSWERS? no</think>\nDECLINES", True),
    ],
)
def test_what_a_model_may_say(server: Server, said: str, declines: bool) -> None:
    server.reply = lambda i, body: (200, say(said))
    assert judge(server).refusals([(ASK, "x")]) == [declines]


def test_the_key_is_sent_and_the_whole_address_is_taken(server: Server) -> None:
    full = EndpointJudge(f"{server.url}/chat/completions", "m", Journal(), key="secret")
    assert full.refusals([(ASK, "x")]) == [False]
    path, headers, _ = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert "secret" not in full.name


def test_verdicts_are_remembered(server: Server, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert judge(server, journal).refusals([(ASK, "x"), (ASK, "x")]) == [False, False]
    journal.close()
    again = Journal(tmp_path / "journal.jsonl")
    assert judge(server, again).refusals([(ASK, "x")]) == [False]
    assert len(server.requests) == 1
    assert EndpointJudge(server.url, "other", again).refusals([(ASK, "x")]) == [False]
    assert len(server.requests) == 2  # another model has its own mind
    assert "key" not in (tmp_path / "journal.jsonl").read_text()


def test_an_empty_answer_declines_nothing(server: Server) -> None:
    assert judge(server).refusals([(ASK, "  ")]) == [False]
    assert not server.requests


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.reply = lambda i, body: (429, {}) if i == 0 else (503, {}) if i == 1 else (200, say("DECLINES"))
    assert judge(server).refusals([(ASK, "x")]) == [True]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "what", "tries"),
    [
        ((401, {"error": "key"}), "HTTP 401", 1),
        ((404, {}), "HTTP 404", 1),
        ((500, {}), "HTTP 500", 4),
        ((302, b""), "HTTP 302", 1),
        ((307, b""), "HTTP 307", 1),
        ((200, b"<html>"), "no JSON", 1),
        ((200, {"error": "no"}), "gave no chat completion", 1),
        ((200, {"choices": []}), "gave no chat completion", 1),
        ((200, say("Perhaps.")), "said 'PERHAPS.', neither DECLINES nor ANSWERS", 1),
        ((200, say("")), "neither DECLINES nor ANSWERS", 1),
    ],
)
def test_what_is_wrong_is_said(server: Server, reply: tuple[int, Any], what: str, tries: int) -> None:
    server.reply = lambda i, body: reply
    with pytest.raises(JudgeError, match=what):
        judge(server, key="secret").refusals([(ASK, "x")])
    assert len(server.requests) == tries
    assert not any(path.endswith("elsewhere") for path, _, _ in server.requests)  # the key goes nowhere else


def test_nobody_there(server: Server) -> None:
    made = judge(server)
    server.close()
    with pytest.raises(JudgeError, match=r"does not answer: .*refused"):
        made.refusals([(ASK, "x")])
