"""OpenAI's own client: chat and responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from clients import PAINT, QUESTION, WEATHER, Weather, client_server
from serving import Served

CHAT: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}
FLAT: Any = [{"type": "function", "strict": True, **tool["function"]} for tool in (WEATHER, PAINT)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with client_server(tmp_path_factory.mktemp("openai")) as found:
        yield found


def text(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(messages=CHAT, **GREEDY, max_tokens=12)
    return answer.choices[0].message.content or ""


def test_chat_and_stream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=CHAT, **GREEDY, max_tokens=12)
    assert answer.choices[0].message.refusal is None and answer.choices[0].message.content
    chunks = client.chat.completions.create(messages=CHAT, **GREEDY, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


def test_chat_calls_one_of_several_tools(client: openai.OpenAI) -> None:
    options: Any = {"messages": CHAT, **GREEDY, "tools": [WEATHER, PAINT], "tool_choice": "required"}
    answer = client.chat.completions.create(**options).choices[0]
    [call] = answer.message.tool_calls or []
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert call.function.name in ("weather", "paint") and json.loads(call.function.arguments)
    with client.chat.completions.stream(**options) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    messages = [
        *CHAT,
        answer.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "dry"},
    ]
    again = client.chat.completions.create(messages=messages, **GREEDY, tools=[WEATHER, PAINT], max_tokens=4)
    assert again.choices[0].message.content


def test_chat_is_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(messages=CHAT, **GREEDY, response_format=Weather)
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_several_choices(client: openai.OpenAI) -> None:
    options: Any = {"messages": CHAT, "model": "tiny", "temperature": 5, "top_p": 1, "max_tokens": 10, "seed": 3}
    one = client.chat.completions.create(**options)
    three = client.chat.completions.create(**options, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert texts[0] == one.choices[0].message.content and len(set(texts)) == 3
    assert three.usage.completion_tokens == 30 and three.usage.prompt_tokens == one.usage.prompt_tokens
    streamed = ["", "", ""]
    usage = None
    for chunk in client.chat.completions.create(**options, n=3, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts and usage == three.usage


def test_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(input=QUESTION, **GREEDY, max_output_tokens=12)
    assert answer.output_text == text(client)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 12 and answer.usage.total_tokens == answer.usage.input_tokens + 12
    assert answer.model_extra["steering"]["decisions"][0]["profile"] == "firm"
    parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    assert client.responses.create(input=parts, **GREEDY, max_output_tokens=12).output_text == text(client)


def test_response_streams(client: openai.OpenAI) -> None:
    whole = text(client)
    with client.responses.stream(input=QUESTION, **GREEDY, extra_body={"stop": whole[8:10]}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole[: whole.index(whole[8:10])]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text and len(deltas) > 1
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert events[-1].type == "response.completed"
    *_, last = client.responses.create(input=QUESTION, **GREEDY, max_output_tokens=4, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text == whole[:4]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_response_calls_a_tool(client: openai.OpenAI, choice: Any) -> None:
    options: Any = {"input": QUESTION, **GREEDY, "tools": FLAT, "tool_choice": choice}
    answer = client.responses.create(**options)
    [call] = answer.output
    assert (call.type, answer.status) == ("function_call", "completed") and json.loads(call.arguments)
    with client.responses.stream(**options) as stream:
        [streamed] = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}
    followed = client.responses.create(
        input=[{"role": "user", "content": QUESTION}, call.model_dump(), result],
        **GREEDY,
        tools=FLAT,
        max_output_tokens=4,
    )
    remembered = client.responses.create(
        input=[result], previous_response_id=answer.id, **GREEDY, tools=FLAT, max_output_tokens=4
    )
    referred = client.responses.create(
        input=[{"role": "user", "content": QUESTION}, {"type": "item_reference", "id": call.id}, result],
        **GREEDY,
        tools=FLAT,
        max_output_tokens=4,
    )
    assert followed.output_text == remembered.output_text == referred.output_text != ""


def test_response_is_parsed(client: openai.OpenAI) -> None:
    answer = client.responses.parse(input=QUESTION, **GREEDY, text_format=Weather)
    assert isinstance(answer.output_parsed, Weather)


def test_response_logprobs(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        input=QUESTION, **GREEDY, max_output_tokens=3, include=["message.output_text.logprobs"], top_logprobs=2
    )
    scores = answer.output[0].content[0].logprobs
    assert "".join(score.token for score in scores) == answer.output_text
    assert all(len(score.top_logprobs) == 2 for score in scores)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ],
)
def test_what_a_response_cannot_have(server: Served, fields: Any, param: str) -> None:
    answer = server.post("/v1/responses", {"input": "Hi", "max_output_tokens": 1, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.json()


def test_an_answer_that_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    answer = client.responses.create(input=QUESTION, **GREEDY, max_output_tokens=1, store=False)
    with pytest.raises(openai.BadRequestError, match="no longer, remembered"):
        client.responses.create(input="And?", previous_response_id=answer.id, **GREEDY)


def test_memory_is_bounded() -> None:
    from finesteer_local.server.errors import ApiError
    from finesteer_local.server.responses_memory import Memory
    from finesteer_local.server.responses_schemas import MessageItem

    memory = Memory(max_bytes=20_000)
    for i in range(100):
        memory.keep(f"resp_{i}", [MessageItem(role="user", content="x" * 1000)])
    with pytest.raises(ApiError):
        memory.conversation("resp_0", [])
    assert memory.conversation("resp_99", [])
