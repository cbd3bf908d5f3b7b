"""LiteLLM's three ways to a local server: as OpenAI's, and both of its ways to Ollama's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from clients import QUESTION, WEATHER, Weather, client_server
from serving import Served

litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed: pip install --group dev")

CHAT = [{"role": "user", "content": QUESTION}]
PROVIDERS = ("openai", "ollama", "ollama_chat")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("litellm")) as found:
        yield found


def complete(server: Served, provider: str, **options: Any) -> Any:
    base = f"{server.url}/v1" if provider == "openai" else server.url
    given = {"messages": CHAT, "temperature": 0, "max_tokens": 12, "api_key": "none", "timeout": 60, **options}
    return litellm.completion(model=f"{provider}/tiny", api_base=base, **given)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat_and_stream(server: Served, provider: str) -> None:
    text = complete(server, provider).choices[0].message.content
    assert text
    if provider != "ollama":  # that writes the conversation into a prompt of its own
        assert text == server.chat(QUESTION, max_tokens=12).json()["choices"][0]["message"]["content"]
    chunks = complete(server, provider, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


@pytest.mark.parametrize("provider", ["openai", "ollama_chat"])
def test_a_tool_is_called(server: Served, provider: str) -> None:
    options: dict[str, Any] = {"tools": [WEATHER], "max_tokens": 100}
    if provider == "openai":
        options["tool_choice"] = "required"
    else:  # it has no other way to say so
        options["extra_body"] = {"tool_choice": "required"}
    [call] = complete(server, provider, **options).choices[0].message.tool_calls
    assert call.function.name == "weather"
    Weather.model_validate_json(call.function.arguments)


def test_a_tool_is_called_in_the_prompt(server: Served) -> None:
    """LiteLLM tells of the tools itself, wants any JSON, and looks for a call in it."""
    answer = complete(server, "ollama", tools=[WEATHER], max_tokens=100)
    body = {"model": "tiny", "prompt": "x", "format": "json", "stream": False, "options": {"temperature": 0}}
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
    assert server.post("/api/generate", body).json()["response"].startswith("{")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_answer_fits_a_schema(server: Served, provider: str) -> None:
    answer = complete(server, provider, response_format=Weather, max_tokens=100).choices[0].message
    Weather.model_validate(json.loads(answer.content))
