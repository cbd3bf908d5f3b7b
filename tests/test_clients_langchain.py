"""LangChain's `ChatOpenAI`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from clients import QUESTION, Paint, Weather, client_server
from serving import Served

openai_chat = pytest.importorskip("langchain_openai", reason="LangChain is not installed: pip install --group dev")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("langchain")) as found:
        yield found


@pytest.fixture(scope="module", params=["chat", "responses"])
def model(server: Served, request: pytest.FixtureRequest) -> Any:
    options: dict[str, Any] = {"use_responses_api": True} if request.param == "responses" else {}
    return openai_chat.ChatOpenAI(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=100,
        max_retries=0,
        **options,
    )


def test_chat_and_stream(model: Any) -> None:
    text = model.invoke(QUESTION).text
    assert len(text) == 100
    assert "".join(chunk.text for chunk in model.stream(QUESTION)) == text


@pytest.mark.parametrize("choice", ["any", "Weather"])
def test_a_tool_is_called_and_its_result_goes_back(model: Any, choice: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = model.bind_tools([Weather, Paint], tool_choice=choice)
    answer = bound.invoke(QUESTION)
    [call] = answer.tool_calls
    assert call["name"] in ("Weather", "Paint") and call["args"]
    result = ToolMessage("dry", tool_call_id=call["id"])
    assert model.bind_tools([Weather, Paint]).invoke([HumanMessage(QUESTION), answer, result]).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_answers(model: Any, method: str) -> None:
    assert isinstance(model.with_structured_output(Weather, method=method).invoke(QUESTION), Weather)
