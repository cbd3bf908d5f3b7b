"""Ollama's interface with its own client: the same answers, its shapes, its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from serving import Served, served
from tiny import make_profile

CHAT = [{"role": "user", "content": "Hello there"}]
GREEDY = {"temperature": 0, "num_predict": 8}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny, profiles=(make_profile(tiny, name="firm", scope="turn", strength=2.0),)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> ollama.Client:
    return ollama.Client(host=server.url)


def text(server: Served, **fields: Any) -> str:
    return server.chat(**fields).json()["choices"][0]["message"]["content"]


def test_chat(server: Served, client: ollama.Client) -> None:
    answer = client.chat("tiny", CHAT, options=GREEDY)
    assert answer.message.content == text(server)
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 8)
    assert answer.prompt_eval_count > 0 and answer.total_duration >= answer.eval_duration > 0


def test_chat_streams(server: Served, client: ollama.Client) -> None:
    first, *pieces, last = list(client.chat("tiny", CHAT, options=GREEDY, stream=True))
    assert first.message.content == "" and not first.done
    assert "".join(piece.message.content for piece in pieces) == text(server)
    assert (last.done, last.done_reason, last.message.content) == (True, "length", "")


def test_the_lines_on_the_wire(server: Served) -> None:
    with server.http.stream("POST", "/api/chat", json={"model": "tiny", "messages": CHAT, "options": GREEDY}) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [decision["profile"] for decision in lines[0]["steering"]["decisions"]] == ["firm"]
    assert not [line for line in lines[1:] if "steering" in line]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_generate(server: Served, client: ollama.Client) -> None:
    assert client.generate("tiny", "Hello there", options=GREEDY).response == text(server)
    streamed = client.generate("tiny", "Hello there", options=GREEDY, stream=True)
    assert "".join(part.response for part in streamed) == text(server)
    system = client.generate("tiny", "Hello there", system="Be odd.", options=GREEDY).response
    messages = [{"role": "system", "content": "Be odd."}, *CHAT]
    assert system == server.chat(messages=messages).json()["choices"][0]["message"]["content"]
    raw = client.generate("tiny", "Hello there", raw=True, options=GREEDY).response
    completion = server.post("/v1/completions", {"prompt": "Hello there", "temperature": 0, "max_tokens": 8})
    assert raw == completion.json()["choices"][0]["text"]


@pytest.mark.parametrize("place", ["top", "options"])
def test_steering_by_request(server: Served, place: str) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": CHAT, "options": dict(GREEDY), "stream": False}
    (body if place == "top" else body["options"])["steering"] = False
    answer = server.post("/api/chat", body).json()
    assert answer["message"]["content"] == text(server, steering=False) != text(server)
    assert answer["steering"] == {"decisions": []}
    (body if place == "top" else body["options"])["steering"] = {"profil": []}
    assert server.post("/api/chat", body).status_code == 400


def test_formats(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 100}
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    found = json.loads(client.chat("tiny", CHAT, format=schema, options=options).message.content)
    assert found["ok"] in (True, False)
    assert client.chat("tiny", CHAT, format="json", options=options).message.content.startswith("{")
    assert client.generate("tiny", "Hi", format="", options=GREEDY).done


def test_options(server: Served, client: ollama.Client) -> None:
    whole = text(server)
    assert client.chat("tiny", CHAT, options={**GREEDY, "stop": [whole[4:6]]}).message.content == whole[:4]
    hot = {"temperature": 5, "top_p": 1, "min_p": 0, "num_predict": 20}
    assert len({client.chat("tiny", CHAT, options={**hot, "seed": n}).message.content for n in (1, 1, 2)}) == 2
    client.chat("tiny", CHAT, options={**GREEDY, "num_ctx": 128, "mirostat": 1}, keep_alive="5m", think=False)
    long = client.chat("tiny", CHAT, options={"temperature": 0, "num_predict": -1})
    assert long.prompt_eval_count + long.eval_count == 1024


def test_tools(client: ollama.Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        *CHAT,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_name": "f"},
    ]
    assert client.chat("tiny", messages, tools=[tool], options=GREEDY).message.content


def test_about_the_model(client: ollama.Client, tiny: Path, server: Served) -> None:
    [listed] = client.list().models
    assert (listed.model, int(listed.size)) == ("tiny", tiny.stat().st_size)
    assert listed.details.format == "gguf" and listed.details.family == "llama"
    [loaded] = client.ps().models
    assert (loaded.name, loaded.context_length) == ("tiny", 1024)
    shown = client.show("tiny")
    assert shown.modelinfo["llama.block_count"] == 4
    assert "im_start" in shown.template and shown.capabilities == ["completion"]
    assert server.http.get("/api/version").json()["version"]
    assert client.chat("tiny:latest", CHAT, options=GREEDY).message.content


def test_asking_for_nothing_loads_the_model(client: ollama.Client) -> None:
    assert client.generate("tiny").done_reason == "load"
    assert client.chat("tiny", []).done_reason == "load"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "huge"}, 404, "this server has the model 'tiny'"),
        ({"model": ""}, 400, "model: String should have at least 1 character"),
        ({}, 400, "model: Field required"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "images"),
        ({"model": "tiny", "options": {"temperature": -1}}, 400, "options.temperature"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "x" * 2000}]}, 400, "the context only 1,024"),
    ],
)
def test_errors(server: Served, body: Any, status: int, said: str) -> None:
    answer = server.post("/api/chat", body)
    assert answer.status_code == status and said in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"template": "x"}, "template: this server does not take it"),
        ({"context": [1, 2]}, "context: this server does not take it"),
        ({"suffix": "x"}, "no tokens for filling in the middle"),
        ({"raw": True, "system": "x"}, "has no template"),
        ({"raw": True, "think": True}, "has no template"),
        ({"think": True}, "does not support thinking"),
        ({"top_logprobs": 2}, "needs logprobs"),
        ({"options": {"repeat_last_n": 0}}, "options.repeat_last_n: this server does not take it"),
        ({"options": {"num_preditc": 5}}, "options.num_preditc: this server does not take it"),
    ],
)
def test_what_there_is_not(client: ollama.Client, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ollama.ResponseError, match=said):
        client.generate("tiny", "Hi", **fields)
