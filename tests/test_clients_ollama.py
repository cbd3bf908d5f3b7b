"""Ollama's own client, with tools, thoughts and log-probabilities; its shapes are in `test_server_ollama`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from clients import PAINT, QUESTION, WEATHER, Weather, client_server
from serving import Served, served
from tiny import write_tiny_model

CHAT = [{"role": "user", "content": QUESTION}]
GREEDY = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("ollama")) as found:
        yield found


@pytest.fixture(scope="module")
def ollama_client(server: Served) -> ollama.Client:
    return ollama.Client(host=server.url)


def test_chat_and_stream(server: Served, ollama_client: ollama.Client) -> None:
    whole = ollama_client.chat("tiny", CHAT, options=GREEDY).message.content
    assert whole == server.chat(QUESTION, max_tokens=12).json()["choices"][0]["message"]["content"]
    streamed = ollama_client.chat("tiny", CHAT, options=GREEDY, stream=True)
    assert "".join(part.message.content or "" for part in streamed) == whole


@pytest.mark.parametrize("tools", [[WEATHER], [WEATHER, PAINT]], ids=["one", "several"])
def test_a_tool_is_called(ollama_client: ollama.Client, tools: Any) -> None:
    options = {"temperature": 0, "tool_choice": "required"}
    message = ollama_client.chat("tiny", CHAT, tools=tools, options=options).message
    [call] = message.tool_calls or []
    assert call.function.name in ("weather", "paint") and call.function.arguments and not message.content
    parts = [part.message for part in ollama_client.chat("tiny", CHAT, tools=tools, options=options, stream=True)]
    assert [part.tool_calls for part in parts if part.tool_calls] == [message.tool_calls]
    result = {"role": "tool", "content": "dry", "tool_name": call.function.name}
    again = ollama_client.chat("tiny", [*CHAT, message, result], tools=tools, options=GREEDY)
    assert again.message.content


def test_the_answer_fits_a_schema(ollama_client: ollama.Client) -> None:
    options = {"temperature": 0}
    answer = ollama_client.chat("tiny", CHAT, format=Weather.model_json_schema(), options=options)
    Weather.model_validate_json(answer.message.content or "")


def test_raw_prompts_have_a_format_and_no_length(tiny: Path) -> None:
    with served(tiny) as server:
        client = ollama.Client(host=server.url)
        options: dict[str, Any] = {"temperature": 0}
        fitting = client.generate("tiny", "x", raw=True, format=Weather.model_json_schema(), options=options)
        Weather.model_validate_json(fitting.response)
        for length in ({}, {"num_predict": -1}, {"num_predict": -2}):
            raw = client.generate("tiny", "x" * 900, raw=True, options={**options, **length})
            assert raw.prompt_eval_count + raw.eval_count == 1024
        assert client.generate("tiny", "x", raw=True, options={**options, "num_predict": 3}).eval_count == 3


def test_what_stands_between(tmp_path: Path) -> None:
    with served(write_tiny_model(tmp_path / "infill.gguf", infill=True)) as server:
        client = ollama.Client(host=server.url)
        filled = client.generate("tiny", "def f(", suffix="):\n", options=GREEDY).response
        body = {"prompt": "def f(", "suffix": "):\n", "temperature": 0, "max_tokens": 12}
        choice = server.post("/v1/completions", body).json()["choices"][0]
        plain = server.post("/v1/completions", {**body, "suffix": None}).json()["choices"][0]
        assert filled == choice["text"] != plain["text"]
        assert "insert" in (client.show("tiny").capabilities or [])


def test_logprobs(ollama_client: ollama.Client) -> None:
    options: Any = {"model": "tiny", "options": GREEDY, "logprobs": True, "top_logprobs": 2}
    answer = ollama_client.chat(messages=CHAT, **options)
    assert "".join(score.token for score in answer.logprobs) == answer.message.content
    assert all(len(score.top_logprobs) == 2 for score in answer.logprobs)
    parts = list(ollama_client.chat(messages=CHAT, **options, stream=True))
    assert "".join(score.token for part in parts for score in part.logprobs or []) == answer.message.content
    for raw in (False, True):
        generated = ollama_client.generate(prompt=QUESTION, raw=raw, **options)
        assert "".join(score.token for score in generated.logprobs) == generated.response


# --- thoughts

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SWITCH = _TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
ALWAYS = _TURNS + "<think>\n"
GRADE = _TURNS + "{{ reasoning_effort or 'none' }}<|channel|>final<|message|>"


@pytest.fixture(scope="module", params=["switch", "always", "grade"])
def thinker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    template = {"switch": SWITCH, "always": ALWAYS, "grade": GRADE}[request.param]
    path = write_tiny_model(tmp_path_factory.mktemp("think") / "think.gguf", chat_template=template)
    with served(path) as found:
        yield request.param, found


def prompt_tokens(server: Served, **fields: Any) -> int:
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


def test_think_is_the_templates_own_switch(thinker: tuple[str, Served]) -> None:
    kind, server = thinker
    client = ollama.Client(host=server.url)

    def read(think: Any) -> int:
        return client.chat(
            "tiny", [{"role": "user", "content": "Hello there"}], think=think, options=GREEDY
        ).prompt_eval_count

    plain = prompt_tokens(server)
    assert read(None) == plain
    if kind == "switch":
        off = prompt_tokens(server, chat_template_kwargs={"enable_thinking": False})
        assert off > plain == read(True) == read("low")
        assert read(False) == off == prompt_tokens(server, reasoning_effort="none")
    elif kind == "always":
        assert read(True) == plain
        with pytest.raises(ollama.ResponseError, match="cannot be switched off"):
            read(False)
    else:
        assert read("high") == plain + 1 == prompt_tokens(server, reasoning_effort="high")  # "none" is three tokens
        assert read("medium") == read(True) == plain + 3
    assert "thinking" in (client.show("tiny").capabilities or [])


def test_thoughts_have_a_field_of_their_own(thinker: tuple[str, Served]) -> None:
    kind, server = thinker
    if kind != "always":
        pytest.skip("a tiny model opens no thoughts itself")
    client = ollama.Client(host=server.url)
    thought = client.chat("tiny", CHAT, think=True, options=GREEDY).message
    assert len(thought.thinking or "") == 12 and thought.content == ""
    parts = list(client.chat("tiny", CHAT, think=True, options=GREEDY, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == thought.thinking
    generated = client.generate("tiny", QUESTION, think=True, options=GREEDY)
    assert (generated.thinking, generated.response) == (thought.thinking, "")


def test_a_variable_that_the_template_does_not_read_is_refused(thinker: tuple[str, Served]) -> None:
    _, server = thinker
    answer = server.chat(chat_template_kwargs={"style": "odd"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "chat_template_kwargs.style"
    assert server.chat(chat_template_kwargs={"thinking": False, "messages": None}).status_code == 200
    assert server.chat(chat_template_kwargs={"messages": []}).status_code == 400
    explained = server.post(
        "/v1/steering/explain",
        {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"style": 1}},
    )
    assert explained.status_code == 400


def test_no_content_type_is_needed(server: Served) -> None:
    body = json.dumps({"model": "tiny", "messages": CHAT, "options": GREEDY, "stream": False}).encode()
    for kind in (None, "application/x-www-form-urlencoded", "text/plain", "application/json"):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = server.http.post("/api/chat", content=body, headers=headers)
        assert answer.status_code == 200 and answer.json()["message"]["content"]
        refused = server.http.post("/api/chat", content=body, headers={**headers, "Origin": "https://example.org"})
        assert refused.status_code == 403
    assert server.http.post("/api/chat", content=b"model=tiny").status_code == 400
    assert server.http.post("/v1/chat/completions", content=body).status_code == 400
