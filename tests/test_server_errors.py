"""What clients get wrong, said in OpenAI's shape; a failure of ours, said without its traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import FineSteerError, SteeringError
from finesteer_local.server.errors import ApiError, api_error
from serving import Served, events, served
from tiny import PLACEHOLDER, make_profile, write_tiny_model


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny, profiles=(make_profile(tiny),)) as found:
        yield found


def schema(found: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"schema": found}}


USER = {"role": "user", "content": "Hi"}
DEEP: Any = {}
for _ in range(80):
    DEEP = {"properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hi"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages.0", "needs content"),
        ({"messages": [USER, {"role": "king", "content": "x"}]}, "messages.1.role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", "Unicode"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"max_tokens": -2}, "max_tokens", "greater"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"n": 0}, "n", "greater"),
        ({"n": 9}, "n", "8"),
        ({"stop": ["x"] * 129}, "stop", "at most 128"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "vocabulary"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1,024"),
        *(({"steering": odd}, "steering", "leave it out for the server's") for odd in (True, 0, [], "false", "safety")),
        ({"top_logprobs": 21}, "top_logprobs", "less"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"grammar": "root ::= ("}, "grammar", "not valid GBNF"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar", "not both"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_object"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema is missing"),
        ({"response_format": schema({"$ref": "https://example.org/s"})}, "response_format", "$ref"),
        ({"response_format": schema({"$ref": "#/no/where"})}, "response_format", "points to nothing"),
        ({"response_format": schema({"type": "nonsense"})}, "response_format", "no type"),
        ({"response_format": schema({"type": "string", "minLength": 10**9})}, "response_format", "minLength"),
        ({"response_format": schema({"type": "string", "pattern": "^(?=a)b$"})}, "response_format", "pattern"),
        ({"response_format": schema(DEEP)}, "response_format", "nested"),
        ({"response_format": schema({"enum": ["\ud800"]})}, "response_format.json_schema.schema", "Unicode"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "no function 'f'"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "required"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages", "the context only 1,024"),
    ],
)  # fmt: skip
def test_the_field_that_is_wrong(server: Served, fields: Any, param: str | None, said: str) -> None:
    content = json.dumps({"messages": [USER], "max_tokens": 1, **fields})
    answer = server.http.post(
        "/v1/chat/completions", content=content.encode(), headers={"Content-Type": "application/json"}
    )
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["param"] == param and said.lower() in error["message"].lower(), error
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff", b'{"messages": NaN}', b"[" * 100_000, b"9" * 5000, b"\x00"],
    ids=repr,
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/chat"])
def test_bodies_that_are_no_request(server: Served, path: str, content: bytes) -> None:
    answer = server.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]


def test_addresses_and_methods_that_there_are_not(server: Served) -> None:
    assert server.http.get("/v2").json()["error"]["type"] == "not_found_error"
    answer = server.http.delete("/v1/models")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.json()["error"]["message"]
    assert server.http.get("/api/nothing").json() == {"error": "there is nothing at this address"}


def test_a_failure_of_ours_has_no_traceback(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("finesteer_local.server.requests._of_chat", lambda *_: 1 / 0)
    answer = server.chat()
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the server failed at this request; its log says more",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in caplog.text  # the log has it
    monkeypatch.undo()
    assert server.chat().status_code == 200


def test_a_hidden_state_that_is_not_finite_ends_its_request_alone(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    with served(model, profiles=(make_profile(model),)) as server:
        for stream in (False, True):
            answer = server.chat(f"a {PLACEHOLDER}", stream=stream)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "steering_failed"
        assert server.chat("a b").status_code == 200


def test_an_error_in_mid_stream_is_an_event(server: Served) -> None:
    body = {"messages": [USER], "grammar": 'root ::= "ab" "é"', "max_tokens": 9, "temperature": 0, "stream": True}
    body["grammar"] = 'root ::= "ab" [\U0001f600]'  # the tiny model's tokens cannot write that
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        data = events(response)
    assert response.status_code == 200
    assert '"error":{' in data[-1] or data[-1] == "[DONE]"


def test_what_the_client_did_not_cause_it_is_not_told() -> None:
    assert "secret" not in api_error(RuntimeError("secret")).message
    assert api_error(FineSteerError("the model was closed")).status == 503
    assert api_error(SteeringError("not finite")).status == 400
    assert ApiError(429, "x").headers["Retry-After"]
    assert ApiError(400, "a\nb\ud800").message == "a b"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}}, "text.format"),
        ({"input": [{"role": "user", "content": "x"}] * 513}, "input"),
        ({"input": "x" * 2000}, "input"),
    ],
)
def test_fields_are_called_what_the_client_called_them(server: Served, fields: Any, param: str) -> None:
    answer = server.post("/v1/responses", {"input": "Hi", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize("content", [b'{"a": "\xe9"}', b'{"a":' * 50_000, b'{"a":' + b"9" * 100_000 + b"}"])
def test_bodies_that_cannot_be_read(server: Served, content: bytes) -> None:
    answer = server.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_json") and "body" in error["message"]
