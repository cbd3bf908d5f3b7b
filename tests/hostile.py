"""Requests made to harm a server, and plain ones to send among them: for a test, and for `benchmarks/soak.py`."""

from __future__ import annotations

import base64
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx

from tiny import SPECIAL

Body = dict[str, Any]

N_PLAIN = 30
"""Distinct plain requests."""

STATUSES = frozenset({0, 200, 400, 403, 404, 408, 413, 429})
"""What may come of a hostile request; 0 is no answer to what was no request."""

_TIMEOUT = 60.0
_WORDS = ("the", "sun", "is", "a", "star", "and", "gives", "light", "to", "every", "planet", "around", "it,", "daily")


def client(url: str) -> httpx.Client:
    """A client that waits long."""
    return httpx.Client(base_url=url, timeout=_TIMEOUT)


# --- the hostile ones


def _nested(depth: int, key: str = "properties") -> Any:
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
    "".join(f"r{i} ::= r{i + 1} | r{i + 2}\n" for i in range(3000)) + 'root ::= r0\nr3000 ::= "a"\nr3001 ::= "b"',
    "root ::= " + '[^"]* ' * 400 + '"a"',
)
SCHEMAS: tuple[Any, ...] = (
    {"type": "string", "pattern": "^(a?b?){0,200}c$"},
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(" * 500 + ")" * 500},
    {"type": "string", "pattern": "(?=a)(?<!b)\\1"},
    {"type": "string", "minLength": 10**9},
    {"enum": [f"word {i}" for i in range(3000)]},
    {"properties": {f"p{i}": {"type": "string", "format": "date-time"} for i in range(40)}},
    _nested(30),
    _nested(2000),
    _nested(12, "anyOf"),
    {"$ref": "#"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"anyOf": [{"type": "object", "properties": {f"k{i}": {"type": "integer"}}} for i in range(200)]},
    {"type": "integer", "minimum": 10**300, "maximum": -(10**300)},
    {"multipleOf": 0},
    {"not": {}},
    {"oneOf": [{"allOf": [{"not": {"anyOf": [{"if": {"const": i}, "then": {"const": i + 1}}]}}]} for i in range(40)]},
    {"patternProperties": {f"^a{{{i}}}.*b$": {"type": "string", "maxLength": i} for i in range(60)}},
    {"type": "array", "uniqueItems": True, "items": {"enum": list(range(200))}, "minItems": 150},
    {"allOf": [{"properties": {f"k{i}": {"pattern": f"^.*{i}.*$"}}} for i in range(50)], "required": ["k1", "k2"]},
)


def _chat(body: Body) -> tuple[str, Body]:
    return "/v1/chat/completions", body


def _asked(text: str, **more: Any) -> tuple[str, Body]:
    return _chat({**user(text), **more})


def _blob(rng: random.Random) -> str:
    return base64.b64encode(rng.randbytes(30_000)).decode()


def _letter(rng: random.Random) -> str:
    return rng.choice("aA. \n中") * 30_000


def _special(rng: random.Random) -> str:
    return "".join(rng.choice((*SPECIAL, "<think>", "</tool_call>", "x")) for _ in range(100))


def _prose(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.choice((2_000, 40_000, 200_000))))


def _named(schema: Any) -> Body:
    return {"name": "x", "schema": schema}


def _tools(rng: random.Random) -> list[Body]:
    schema = rng.choice(SCHEMAS)
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": schema}} for i in range(3)]


def _calls(rng: random.Random) -> list[Body]:
    arguments = rng.choice(('{"a": [', "[1]", '{"a": 1}', "\0"))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [*user("Hi")["messages"], *[{"role": "assistant", "tool_calls": [call] * 40}] * 200]


_Maker = Callable[[random.Random, str], tuple[str, Body]]

MAKERS: tuple[_Maker, ...] = (
    lambda rng, model: _asked("Hi", grammar=rng.choice(GRAMMARS)),
    lambda rng, model: _asked(
        "Hi", response_format={"type": "json_schema", "json_schema": _named(rng.choice(SCHEMAS))}
    ),
    lambda rng, model: (
        "/v1/responses",
        {"input": "Hi", "text": {"format": {"type": "json_schema", **_named(rng.choice(SCHEMAS))}}},
    ),
    lambda rng, model: ("/api/chat", {"model": model, **user("Hi"), "format": rng.choice(SCHEMAS), "stream": False}),
    lambda rng, model: _asked("Hi", tools=_tools(rng), tool_choice="required"),
    lambda rng, model: _asked(_blob(rng)),
    lambda rng, model: _asked(_letter(rng)),
    lambda rng, model: (
        "/v1/completions",
        {"prompt": [_letter(rng)[:2000], _blob(rng)[:2000]], "n": 8, "stop": [_letter(rng)[:1000]] * 128},
    ),
    lambda rng, model: _asked(_special(rng)),
    lambda rng, model: _asked("Hi", steering={"profiles": [{"name": "firm", "strength": 1e308}]}),
    lambda rng, model: _asked("Hi", logit_bias={str(rng.randrange(1 << 29)): 100}),
    lambda rng, model: _asked("Hi", n=8, temperature=100, stream=True),
    lambda rng, model: _chat({"messages": [{"role": rng.choice(("user", "tool", "king")), "content": [[[]]]}] * 400}),
    lambda rng, model: _asked(_prose(rng)),
    lambda rng, model: _asked(_special(rng) * rng.choice((10, 300))),
    lambda rng, model: _chat({"messages": _calls(rng)}),
    lambda rng, model: _asked("Hi", **{f"field{i}": [i] for i in range(30_000)}),
    lambda rng, model: (
        rng.choice(("/tokenize", "/api/generate")),
        {"model": model, "prompt": _prose(rng), "stream": False},
    ),
    lambda rng, model: ("/v1/completions", {"prompt": [_prose(rng)[:20_000]] * 32}),
    lambda rng, model: (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 20_000}]},
    ),
    lambda rng, model: (
        "/v1/responses",
        {"input": [rng.choice(({}, 1, {"role": "user", "content": [{}] * 99}))] * 3000},
    ),
    lambda rng, model: _chat({"messages": [{"role": "user", "content": [rng.choice(({}, 1, []))] * 200_000}]}),
    lambda rng, model: ("/v1/completions", {"prompt": [rng.choice(([], 1.5, ["a"], "x"))] * 150_000}),
    lambda rng, model: ("/detokenize", {"tokens": [rng.choice((1, 2, 300))] * 300_000}),
    lambda rng, model: _asked("Hi", logit_bias={f"{rng.choice('x1')}{i}": "y" for i in range(50_000)}),
)
"""Each makes a hostile request of its kind, as path and body, for a model of that name."""


def user(text: str) -> Body:
    """A conversation of one message."""
    return {"messages": [{"role": "user", "content": text}]}


def attack(http: httpx.Client, number: int, model: str = "tiny") -> int:
    """One hostile request; the status of what came back, 0 where nothing could."""
    rng = random.Random(number)
    kind = number % (len(MAKERS) + 3)
    if kind < len(MAKERS):
        path, body = MAKERS[kind](rng, model)
        try:
            content = json.dumps(body).encode()
        except RecursionError:
            return 0
        return http.post(path, content=content, headers={"Content-Type": "application/json"}).status_code
    if kind == len(MAKERS):
        deep = rng.choice(
            (b"[" * 100_000, b'{"a":' * 50_000, b'{"messages":' + b"[" * 90_000, b"9" * 100_000, b"\xff\x00")
        )
        return http.post(rng.choice(("/v1/chat/completions", "/api/chat")), content=deep).status_code
    return _lie(http, rng, waits=kind == len(MAKERS) + 1)


def _lie(http: httpx.Client, rng: random.Random, *, waits: bool) -> int:
    """What is no request; without `waits` it goes away at once."""
    lies = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\nContent-Type: application/json\r\n\r\n{",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    with socket.create_connection(("127.0.0.1", int(http.base_url.port or 0)), timeout=5) as raw:
        try:
            raw.sendall(rng.choice(lies))
            if not waits:
                return 0
            raw.settimeout(0.3)
            return int((raw.recv(4096).split() or [b"", b"0"])[1])
        except (TimeoutError, ConnectionError, ValueError, IndexError):
            return 0


# --- the plain ones


def plain(number: int, model: str = "tiny") -> tuple[str, Body]:
    """A greedy request of 16 tokens; there are `N_PLAIN`, then they come again."""
    text = f"Question {number % 10}: what is the sun?"
    greedy = {"temperature": 0, "max_tokens": 16}
    if number % 3 == 0:
        return "/v1/completions", {"prompt": text, **greedy}
    if number % 3 == 1:
        return "/v1/chat/completions", {**user(text), **greedy}
    options = {"temperature": 0, "num_predict": 16}
    return "/api/chat", {"model": model, **user(text), "stream": False, "options": options}


def ask(http: httpx.Client, number: int, model: str = "tiny") -> tuple[str, float]:
    """The answer to a plain request with its decisions, and the seconds that it took."""
    path, body = plain(number, model)
    start = time.monotonic()
    answer = http.post(path, json=body)
    seconds = time.monotonic() - start
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text}", seconds
    found = answer.json()
    choice = (found.get("choices") or [found])[0]
    told = choice.get("text") or choice["message"]["content"]
    return json.dumps([told, found.get("steering") or choice.get("steering")]), seconds
