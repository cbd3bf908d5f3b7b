"""Fields of OpenAI's and other servers' requests: what they ask for is done, or refused; never dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clients import PAINT, WEATHER
from finesteer_local.server import requests
from finesteer_local.server.known_fields import ANY, OLLAMA_OPTIONS, OPENAI
from finesteer_local.server.settings import Limits
from serving import Served, served
from templates import CALL, QWEN3, with_tool
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = write_tiny_model(tmp_path_factory.mktemp("fields") / "model.gguf", chat_template=QWEN3, infill=True)
    with served(path, limits=Limits(max_tokens=50)) as found:
        yield found


def said(server: Served, **fields: Any) -> str:
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def completed(server: Served, **fields: Any) -> Any:
    return server.post("/v1/completions", {"prompt": "the sun", "temperature": 0, "max_tokens": 6, **fields})


PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 1},
}


@pytest.mark.parametrize("path", PATHS)
def test_what_changes_nothing_is_taken(server: Served, path: str) -> None:
    fields: dict[str, Any] = {name: 7 if values is ANY else values[0] for name, values in OPENAI.items()}
    if path == "/v1/responses":  # there they are no fields at all
        fields = {k: v for k, v in fields.items() if k not in ("functions", "function_call", "store")}
    answer = server.post(path, {**PATHS[path], **fields, "metadata": {"a": "b"}, "no_such_field": None})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 3),
        ("ignore_eos", True),
        ("repetition_penalty", 1.2),
        ("min_tokens", 5),
        ("dry_multiplier", 0.8),
        ("xtc_probability", 0.5),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "a"),
        ("stop_token_ids", [7]),
        ("chat_template", "{{ x }}"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("web_search_options", {}),
        ("functions", [{"name": "f"}]),
        ("temprature", 0),
        ("top_a", False),
    ],
)
def test_what_would_change_the_answer_is_refused(server: Served, path: str, name: str, value: Any) -> None:
    answer = server.post(path, {**PATHS[path], name: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, name) and "does not take it" in error["message"], error


def test_ollamas_options_that_change_nothing_are_taken(server: Served) -> None:
    options: dict[str, Any] = {name: 7 if values is ANY else values[0] for name, values in OLLAMA_OPTIONS.items()}
    body = {"model": "tiny", "prompt": "x", "stream": False, "keep_alive": -1, "truncate": False, "shift": False}
    answer = server.post("/api/generate", {**body, "options": {**options, "num_predict": 1}})
    assert answer.status_code == 200, answer.text
    assert server.post("/api/generate", {**body, "width": 512}).status_code == 400


def test_empty_stop_words_are_none_and_there_may_be_128(server: Served) -> None:
    whole = said(server)
    for none in ("", [""], ["", ""], []):
        assert said(server, stop=none) == whole
    many = [f"never {i}" for i in range(127)]
    assert said(server, stop=[*many, whole[4:6]]) == whole[: whole.index(whole[4:6])]
    assert completed(server, stop=["", "x" * 1024]).status_code == 200


def test_lengths_as_clients_mean_them(server: Served) -> None:
    for unbounded in ({"max_tokens": -1}, {"max_tokens": 0}, {"max_completion_tokens": -1}, {"max_tokens": None}):
        assert len(said(server, **unbounded)) == 50  # the server's own limit
    assert len(said(server, max_tokens=5, max_completion_tokens=3)) == 3
    assert completed(server, max_tokens=-1).json()["usage"]["completion_tokens"] == 50
    assert completed(server, max_tokens=0).json()["usage"]["completion_tokens"] == 0
    assert completed(server, max_tokens=None).json()["usage"]["completion_tokens"] == 16


def test_an_answer_until_the_context_ends(tiny: Path) -> None:
    with served(tiny, ctx=256) as server:
        assert server.chat(max_tokens=-1).json()["usage"]["total_tokens"] == 256
        assert completed(server, max_tokens=-1).json()["usage"]["total_tokens"] == 256


def test_assistant_messages_that_say_nothing(server: Served) -> None:
    user = {"role": "user", "content": "Hi"}
    empty = said(server, messages=[user, {"role": "assistant", "content": ""}, user])
    for message in (
        {"content": None, "tool_calls": []},
        {"content": None, "tool_calls": None, "refusal": None, "function_call": None, "audio": None},
        {},
    ):
        assert said(server, messages=[user, {"role": "assistant", **message}, user]) == empty
    refused = said(server, messages=[user, {"role": "assistant", "content": None, "refusal": "No."}, user])
    assert refused == said(server, messages=[user, {"role": "assistant", "content": "No."}, user])


def test_older_function_calls_are_tool_calls(server: Served) -> None:
    question, _, result = with_tool()
    old = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    assert said(server, messages=[question, old, result]) == said(server, messages=with_tool())


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["Hello", "there"], "Hello\nthere"),
        (["Hello ", "there"], "Hello there"),
        (["Hello", "\nthere"], "Hello\nthere"),
        (["", "Hello", "", "there"], "Hello\nthere"),
        (["Hello"], "Hello"),
        ([], ""),
    ],
)
def test_parts_of_a_text_that_were_apart_stay_apart(server: Served, parts: list[str], whole: str) -> None:
    content = [{"type": "text", "text": part} for part in parts]
    answer = said(server, messages=[{"role": "user", "content": content}])
    assert answer == said(server, messages=[{"role": "user", "content": whole}])


def test_several_choices_of_several_prompts(server: Served) -> None:
    hot = {"temperature": 5, "top_p": 1, "min_p": 0, "seed": 5}
    alone = [completed(server, **hot, prompt=prompt).json() for prompt in ("the sun", "an end")]
    both = completed(server, **hot, prompt=["the sun", "an end"], n=3).json()
    texts = [choice["text"] for choice in both["choices"]]
    assert [choice["index"] for choice in both["choices"]] == list(range(6))
    assert [texts[0], texts[3]] == [answer["choices"][0]["text"] for answer in alone]
    assert len(set(texts)) == 6
    assert both["usage"]["prompt_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in alone)
    assert both["usage"]["completion_tokens"] == 36
    too_many = completed(server, prompt=["x"] * 5, n=8)
    assert too_many.status_code == 400 and "32 prompts" in too_many.json()["error"]["message"]
    greedy = server.chat(n=8).json()["choices"]
    assert len(greedy) == 8 and len({choice["message"]["content"] for choice in greedy}) == 1


def test_completions_fit_a_schema(server: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    answer = completed(server, response_format=wanted, max_tokens=40).json()["choices"][0]
    assert answer["finish_reason"] == "stop" and json.loads(answer["text"]) == {"a": "b"}


def test_a_suffix(server: Served, tiny: Path) -> None:
    plain, filled = (completed(server, suffix=suffix).json() for suffix in ("", "):\n"))
    assert plain["choices"] == completed(server).json()["choices"]
    assert filled["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 3
    echoed = completed(server, suffix="x", echo=True)
    assert (echoed.status_code, echoed.json()["error"]["param"]) == (400, "echo")
    with served(tiny) as other:
        refused = completed(other, suffix="x")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")
    assert "filling in the middle" in refused.json()["error"]["message"]


def test_allowed_tools(server: Served) -> None:
    tools = [WEATHER, PAINT]
    allowed = [{"type": "function", "function": {"name": "paint"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    [call] = server.chat(tools=tools, tool_choice=choice).json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "paint"
    auto = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": allowed}}
    told = server.chat(tools=tools, tool_choice=auto).json()["usage"]["prompt_tokens"]
    assert told == server.chat(tools=[PAINT]).json()["usage"]["prompt_tokens"]
    assert told < server.chat(tools=tools).json()["usage"]["prompt_tokens"]


CALLS = '<tool_call>{"name": "weather", "arguments": {"town": "Ulm"}}</tool_call>'


def test_calls_that_the_model_makes_itself_are_found(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar stands for a model that was trained to call tools between tags."""
    options: dict[str, Any] = {"tools": [WEATHER], "max_tokens": 200}
    options["grammar"] = 'root ::= "Wait. " ' + json.dumps(CALLS)
    monkeypatch.setattr(server.service, "settings", replace(server.service.settings, limits=Limits()))
    assert said(server, **options) == f"Wait. {CALLS}"  # what a client's own grammar makes is text
    reading = requests._reading
    monkeypatch.setattr(requests, "_reading", lambda *args, constrained: reading(*args, constrained=False))
    choice = server.chat(**options).json()["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Wait.", "tool_calls")
    assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"]) == {"town": "Ulm"}
    without = server.chat(**{**options, "tools": None}).json()["choices"][0]["message"]
    assert without["content"] == f"Wait. {CALLS}"


def test_a_called_tool_needs_no_format(server: Served) -> None:
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required"}
    call = server.chat(**options, response_format={"type": "json_object"}).json()["choices"][0]["message"]
    assert call["tool_calls"][0]["function"]["name"] == "weather"
    refused = server.chat(**options, grammar='root ::= "a"')
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")
