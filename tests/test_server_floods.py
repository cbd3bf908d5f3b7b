"""Requests of a megabyte: the first fault is told, not all, and nobody waits for a long one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from finesteer_local.server import (
    chat_schemas,
    completions_schemas,
    ollama_schemas,
    requests,
    responses_schemas,
    sampling_schemas,
    schemas,
    service,
    tokens_schemas,
)
from finesteer_local.server.schemas import Given
from serving import Served, served

MODULES = (
    chat_schemas,
    completions_schemas,
    ollama_schemas,
    responses_schemas,
    sampling_schemas,
    schemas,
    tokens_schemas,
)
GIVEN = {found for module in MODULES for found in vars(module).values() if isinstance(found, type)}
CHAT, ASKED = "/v1/chat/completions", [{"role": "user", "content": "Hi"}]
MANY = 100_000


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Served]:
    with served(tiny) as found:
        yield found


def lists(schema: Any) -> Iterator[dict[str, Any]]:
    """The lists in what pydantic makes of a model."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for one in schema.values():
            yield from lists(one)
    elif isinstance(schema, list | tuple):
        for one in schema:
            yield from lists(one)


@pytest.mark.parametrize("model", sorted((m for m in GIVEN if issubclass(m, Given)), key=lambda m: m.__name__))
def test_every_list_of_a_client_ends_at_its_first_fault(model: type[BaseModel]) -> None:
    assert all(found.get("fail_fast") for found in lists(model.__pydantic_core_schema__))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{}] * MANY}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user", "content": [{}] * MANY}]}, "messages.0.content.0.type"),
        (CHAT, {"messages": ASKED, **{f"x{i}": 1 for i in range(MANY // 2)}}, "x0"),
        (CHAT, {"messages": ASKED, "steering": {f"x{i}": 1 for i in range(MANY // 2)}}, "steering.x0"),
        (CHAT, {"messages": ASKED, "logit_bias": {f"x{i}": 1 for i in range(MANY // 2)}}, "logit_bias"),
        ("/v1/completions", {"prompt": [[]] * MANY}, "prompt.0"),
        ("/v1/completions", {"prompt": [1.5] * MANY}, "prompt.0"),
        ("/v1/responses", {"input": [{}] * MANY}, "input.0.role"),
        ("/v1/responses", {"input": [1] * MANY}, "input.0"),
        ("/detokenize", {"tokens": ["a"] * MANY}, "tokens.0"),
    ],
)
def test_the_first_of_many_faults_is_told(server: Served, path: str, body: Any, param: str) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_no_short_request_waits_for_a_long_one(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, began, make = threading.Event(), threading.Event(), requests.chat_request

    def slow(llama: Any, messages: Any, **options: Any) -> Any:
        if len(messages[0]["content"]) > service.LONG:
            began.set()
            assert goes_on.wait(60)
        return make(llama, messages, **options)

    wanted = server.chat().json()["choices"]
    monkeypatch.setattr(requests, "chat_request", slow)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.chat, "a b " * service.LONG)
        try:
            assert began.wait(60)
            assert server.chat().json()["choices"] == wanted
            assert not long.done()
        finally:
            goes_on.set()
        assert long.result().json()["error"]["code"] == "context_length_exceeded"
