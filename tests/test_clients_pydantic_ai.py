"""pydantic-ai: agents with tools and output types, over chats and over responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clients import QUESTION, Paint, Weather, client_server
from serving import Served

pydantic_ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed: pip install --group dev")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("pydantic_ai")) as found:
        yield found


@pytest.fixture(params=["chat", "responses"])
def model(server: Served, request: pytest.FixtureRequest) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    kind = OpenAIChatModel if request.param == "chat" else OpenAIResponsesModel
    return kind("tiny", provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key="none"))


def agent(model: Any, **options: Any) -> Any:
    settings = {"temperature": 0.0, "max_tokens": 100}
    return pydantic_ai.Agent(model, model_settings=settings, retries=0, **options)


def test_chat_and_stream(model: Any) -> None:
    text = agent(model).run_sync(QUESTION).output
    assert len(text) == 100
    streamed = agent(model).run_stream_sync(QUESTION)
    assert list(streamed.stream_text())[-1] == text


@pytest.mark.parametrize("kind", ["plain", "tool", "native", "several"])
def test_output_types(model: Any, kind: str) -> None:
    wanted: Any = {
        "plain": Weather,
        "tool": pydantic_ai.ToolOutput(Weather),
        "native": pydantic_ai.NativeOutput(Weather),
        "several": [Weather, Paint],
    }[kind]
    assert isinstance(agent(model, output_type=wanted).run_sync(QUESTION).output, Weather | Paint)


def test_a_tool_is_called(model: Any) -> None:
    """With an output type, one of its tool and the agent's has to be called in every turn."""
    called = []

    def paint(colour: Weather) -> str:
        called.append(colour)
        return "done"

    limits = pydantic_ai.UsageLimits(request_limit=6)
    found = agent(model, output_type=Weather, tools=[paint])
    try:
        result = found.run_sync(QUESTION, usage_limits=limits)
        assert isinstance(result.output, Weather)
    except pydantic_ai.UsageLimitExceeded:
        assert called  # a tiny model may call it again and again
