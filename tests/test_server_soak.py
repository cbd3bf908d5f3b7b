"""A crowd of hostile requests among plain ones: every plain answer is its own, in time, and the server lives."""

from __future__ import annotations

import base64
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from finesteer_local.server.settings import Limits
from serving import Served, served
from tiny import SPECIAL, make_profile

HOSTILE, PLAIN = 160, 80
LATE = 2.0  # seconds
SHARE = 30  # times as long as alone (0.1 s) an answer may take where six clients share the machine
Body = dict[str, Any]


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    limits = Limits(max_tokens=64, body=1 << 18)
    with served(tiny, profiles=(make_profile(tiny, name="firm", gate="selective"),), limits=limits) as found:
        yield found


# --- the hostile ones


def nested(depth: int, key: str = "properties") -> Any:
    found: Any = {"type": "string"}
    for _ in range(depth):
        found = {"type": "object", key: {"a": found}} if key == "properties" else {key: [found]}
    return found


GRAMMARS = (
    'root ::= ("a"? "b"? ){0,200} "c"',
    'root ::= ("a"* "a"* "a"*)* "b"',
    'root ::= root "a" | "a"',
    "root ::= " + "(" * 3000 + '"a"' + ")" * 3000,
    "root ::= " + " | ".join(f'"{i}"' for i in range(8000)),
    'root ::= a a a a\na ::= b b b b\nb ::= c c c c\nc ::= ("x"? "y"?){0,99}',
    "root ::= [",
    'other ::= "a"',
    'root ::= "ab" [\U0001f600]',
    'root ::= "a"{0,1000000000}',
)
SCHEMAS: tuple[Any, ...] = (
    {"type": "string", "pattern": "^(a?b?){0,200}c$"},
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(" * 500 + ")" * 500},
    {"type": "string", "pattern": "(?=a)(?<!b)\\1"},
    {"type": "string", "minLength": 10**9},
    {"enum": [f"word {i}" for i in range(3000)]},
    {"properties": {f"p{i}": {"type": "string", "format": "date-time"} for i in range(40)}},
    nested(30),
    nested(2000),
    nested(12, "anyOf"),
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"anyOf": [{"type": "object", "properties": {f"k{i}": {"type": "integer"}}} for i in range(200)]},
    {"type": "integer", "minimum": 10**300, "maximum": -(10**300)},
    {"multipleOf": 0},
    {"not": {}},
    {"oneOf": [{"allOf": [{"not": {"anyOf": [{"if": {"const": i}, "then": {"const": i + 1}}]}}]} for i in range(40)]},
)


def bodies(rng: random.Random) -> list[tuple[str, Body]]:
    """One of each kind."""
    chat = "/v1/chat/completions"
    blob = base64.b64encode(rng.randbytes(30_000)).decode()
    letter = rng.choice("aA. \n中") * 30_000
    special = "".join(rng.choice((*SPECIAL, "<think>", "</tool_call>", "x")) for _ in range(100))
    schema, grammar = rng.choice(SCHEMAS), rng.choice(GRAMMARS)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": schema if isinstance(schema, dict) else {}}}
        for i in range(3)
    ]
    return [
        (chat, {**user("Hi"), "grammar": grammar}),
        (chat, {**user("Hi"), "response_format": wanted}),
        ("/v1/responses", {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}),
        ("/api/chat", {"model": "tiny", **user("Hi"), "format": schema, "stream": False}),
        (chat, {**user("Hi"), "tools": tools, "tool_choice": "required"}),
        (chat, user(blob)),
        (chat, user(letter)),
        ("/v1/completions", {"prompt": [letter[:2000], blob[:2000]], "n": 8, "stop": [letter[:1000]] * 128}),
        (chat, user(special)),
        (chat, {**user("Hi"), "steering": {"profiles": [{"name": "firm", "strength": 1e308}]}}),
        (chat, {**user("Hi"), "logit_bias": {str(rng.randrange(1 << 29)): 100}}),
        (chat, {**user("Hi"), "n": 8, "temperature": 100, "stream": True}),
        (chat, {"messages": [{"role": rng.choice(("user", "tool", "king")), "content": [[[]]]}] * 400}),
    ]


def user(text: str) -> Body:
    return {"messages": [{"role": "user", "content": text}]}


def attack(server: Served, http: httpx.Client, number: int) -> int:
    """One hostile request; the status of what came back, 0 where nothing could."""
    rng = random.Random(number)
    kind = number % 16
    if kind < 13:
        path, body = bodies(rng)[kind]
        try:
            content = json.dumps(body).encode()
        except RecursionError:
            return 0
        return http.post(path, content=content, headers={"Content-Type": "application/json"}).status_code
    if kind == 13:
        deep = rng.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b'{"messages":' + b"[" * 90_000, b"9" * 100_000, b"\xff\x00")
        )
        return http.post(rng.choice(("/v1/chat/completions", "/api/chat")), content=deep).status_code
    lies = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\nContent-Type: application/json\r\n\r\n{",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    with socket.create_connection(("127.0.0.1", int(httpx.URL(server.url).port or 0)), timeout=5) as raw:
        raw.sendall(rng.choice(lies))
        if kind == 14:
            return 0  # goes away at once
        raw.settimeout(0.3)
        try:
            return int((raw.recv(4096).split() or [b"", b"0"])[1])
        except (TimeoutError, ConnectionError, ValueError, IndexError):
            return 0


# --- the plain ones


def plain(number: int) -> tuple[str, Body]:
    text = f"Question {number % 10}: what is the sun?"
    greedy = {"temperature": 0, "max_tokens": 16}
    if number % 3 == 0:
        return "/v1/completions", {"prompt": text, **greedy}
    if number % 3 == 1:
        return "/v1/chat/completions", {**user(text), **greedy}
    return "/api/chat", {
        "model": "tiny",
        **user(text),
        "stream": False,
        "options": {"temperature": 0, "num_predict": 16},
    }


def ask(http: httpx.Client, number: int) -> tuple[str, float]:
    """The answer with its decisions, and the seconds that it took."""
    path, body = plain(number)
    start = time.monotonic()
    answer = http.post(path, json=body)
    seconds = time.monotonic() - start
    assert answer.status_code == 200, answer.text
    found = answer.json()
    choice = (found.get("choices") or [found])[0]
    told = choice.get("text") or choice["message"]["content"]
    return json.dumps([told, found.get("steering") or choice.get("steering")]), seconds


def test_plain_requests_among_hostile_ones(server: Served) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        first = {number: ask(http, number) for number in range(30)}
    alone = {number: answer for number, (answer, _) in first.items()}
    slowest = max(seconds for _, seconds in first.values())
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def attacks(worker: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            for number in range(worker, HOSTILE, 4):
                statuses[attack(server, http, number)] += 1

    def health() -> None:
        with httpx.Client(base_url=server.url, timeout=10) as http:
            while not over.wait(0.2):
                assert http.get("/health").json() == {"status": "ok"}

    late: list[float] = []
    with ThreadPoolExecutor(6) as pool, httpx.Client(base_url=server.url, timeout=60) as http:
        watching = pool.submit(health)
        attacking = [pool.submit(attacks, worker) for worker in range(4)]
        try:
            number = 0
            while number < PLAIN or not all(work.done() for work in attacking):
                answer, seconds = ask(http, number)
                assert answer == alone[number % 30], plain(number)
                late.append(seconds)
                number += 1
        finally:
            for work in attacking:
                work.result()
            over.set()
        watching.result()
    assert not statuses.keys() - {0, 200, 400, 403, 404, 408, 413, 429}, statuses
    assert statuses[400] > HOSTILE / 4 and statuses[200] > HOSTILE / 10, statuses
    print(f"hostile {dict(statuses)}, plain {number}, alone {slowest:.2f} s, latest {max(late):.2f} s")
    assert max(late) < LATE + SHARE * slowest, (sorted(late)[-5:], slowest)
    server.wait_until_idle()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert {number: ask(http, number)[0] for number in range(30)} == alone
