"""`/v1/chat/completions` with OpenAI's own client: the answers are the model's own, with their decisions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from reference import steered_llama
from serving import Served, events, served
from tiny import make_profile

CHAT: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a comet?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def profile(tiny: Path) -> Profile:
    return make_profile(tiny, name="firm", gate="partly", scope="turn", strength=2.0)


@pytest.fixture(scope="module")
def llama(tiny: Path) -> Iterator[SteeredLlama]:
    llama = steered_llama(tiny, n_ctx=1024)
    yield llama
    llama.close()


def alone(llama: SteeredLlama, *profiles: Profile, messages: Any = CHAT, **options: Any) -> Any:
    """The answer of `SteeredLlama` itself, with nothing in its cache."""
    llama.set_profiles(profiles)
    llama.forget()
    return llama.create_chat_completion(messages, **{"temperature": 0.0, "max_tokens": 12, **options})


def test_the_answer_and_its_decision_are_the_models_own(
    client: openai.OpenAI, llama: SteeredLlama, profile: Profile
) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY)
    expected = alone(llama, profile)
    [choice] = answer.choices
    assert choice.message.content == expected["choices"][0]["message"]["content"]
    assert choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.total_tokens == expected["usage"]["total_tokens"]
    [decision] = answer.model_extra["steering"]["decisions"]
    own = llama.last_decision
    assert (decision["profile"], decision["open"], decision["strength"]) == ("firm", True, 2.0)
    assert (decision["g"], decision["score"]) == (own.g, own.score)
    assert [expert["name"] for expert in decision["experts"]] == [name for name, _ in own.leading_experts()] + [
        own.leading_experts(4)[3][0]
    ]


def test_unsteered_is_the_plain_model(client: openai.OpenAI, llama: SteeredLlama, profile: Profile) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY, extra_body={"steering": False})
    plain = alone(llama)["choices"][0]["message"]["content"]
    assert answer.choices[0].message.content == plain != alone(llama, profile)["choices"][0]["message"]["content"]
    assert answer.model_extra["steering"] == {"decisions": []}


def test_a_stream_begins_with_the_decision_and_ends_with_the_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY)
    stream = client.chat.completions.create(
        model="tiny", messages=CHAT, **GREEDY, stream=True, stream_options={"include_usage": True}
    )
    first, *pieces, end, last = list(stream)
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert first.model_extra["steering"] == whole.model_extra["steering"]
    assert "".join(chunk.choices[0].delta.content for chunk in pieces) == whole.choices[0].message.content
    assert len(pieces) > 3 and all("steering" not in chunk.model_extra for chunk in pieces)
    assert end.choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage == whole.usage


def test_the_stream_on_the_wire(server: Served) -> None:
    body = {"messages": CHAT, **GREEDY, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = events(response)
    assert data[-1] == "[DONE]"
    assert [set(json.loads(line)["choices"][0]["delta"]) for line in (data[0], data[1], data[-2])] == [
        {"role", "content"},
        {"content"},
        set(),
    ]


def test_explain_leaves_the_experts_out(server: Served) -> None:
    [decision] = server.chat(steering={"explain": False}).json()["steering"]["decisions"]
    assert "experts" not in decision and decision["open"]


def test_stop_words(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY).choices[0].message.content
    stop = text[5:7]
    for given in (stop, ["never", stop]):
        [choice] = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY, stop=given).choices
        assert choice.message.content == text[: text.index(stop)]
        assert choice.finish_reason == "stop"


def test_a_seed_repeats(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        answer = client.chat.completions.create(
            model="tiny", messages=CHAT, temperature=5, top_p=1, max_tokens=20, seed=seed, extra_body={"min_p": 0}
        )
        return answer.choices[0].message.content

    assert text(1) == text(1) != text(2)
    assert text(-5) == text(-5)


def test_logit_bias(client: openai.OpenAI, llama: SteeredLlama) -> None:
    [token] = llama.tokenize(b"Q", add_bos=False)
    answer = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY, logit_bias={str(token): 100})
    assert answer.choices[0].message.content == "Q" * 12


def test_logprobs(client: openai.OpenAI, profile: Profile, llama: SteeredLlama) -> None:
    [choice] = client.chat.completions.create(
        model="tiny", messages=CHAT, **GREEDY, logprobs=True, top_logprobs=3
    ).choices
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == choice.message.content
    for token in content:
        assert bytes(token.bytes).decode() == token.token == token.top_logprobs[0].token
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
    plain = client.chat.completions.create(model="tiny", messages=CHAT, **GREEDY, logprobs=True).choices[0]
    assert plain.logprobs.content[0].top_logprobs == []
    assert plain.logprobs.content[0].logprob == content[0].logprob <= 0


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["answer", "count"],
}


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        {"type": "json_object", "schema": SCHEMA},
    ],
    ids=["OpenAI", "llama-cpp-python"],
)
def test_an_answer_fits_a_schema(client: openai.OpenAI, response_format: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, temperature=0, max_tokens=200, response_format=response_format
    )
    found = json.loads(answer.choices[0].message.content)
    assert found["answer"] in ("yes", "no") and found["count"] >= 0


def test_any_json(server: Served) -> None:
    text = server.chat(response_format={"type": "json_object"}, max_tokens=30).json()["choices"][0]["message"][
        "content"
    ]
    assert text.startswith("{")


def test_a_grammar(server: Served) -> None:
    choice = server.chat(grammar='root ::= "a" [bc] "d"').json()["choices"][0]
    assert choice["message"]["content"] in ("abd", "acd")
    assert choice["finish_reason"] == "stop"


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"town": {"enum": ["Ulm", "Bern"]}}, "required": ["town"]},
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 60}
    answer = client.chat.completions.create(**options, tools=[TOOL], tool_choice=choice).choices[0]
    [call] = answer.message.tool_calls
    assert answer.message.content is None and answer.finish_reason == "tool_calls"
    assert call.function.name == "weather" and json.loads(call.function.arguments)["town"] in ("Ulm", "Bern")
    with client.chat.completions.stream(**options, tools=[TOOL], tool_choice=choice) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.finish_reason == "tool_calls"


def test_tool_results_go_back(server: Served) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    answer = server.post("/v1/chat/completions", {"messages": messages, "tools": [TOOL], **GREEDY})
    assert answer.status_code == 200


def test_parts_of_text_are_one_message(server: Served) -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    one = server.chat("Hello there").json()["choices"]
    answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}], **GREEDY})
    assert answer.json()["choices"][0]["message"]["content"].startswith(one[0]["message"]["content"])


def test_the_longest_answer(tiny: Path) -> None:
    from finesteer_local.server.settings import Limits

    with served(tiny, limits=Limits(max_tokens=5)) as server:
        for asked in (..., 3, 100):
            usage = server.chat(max_tokens=asked).json()["usage"]
            assert usage["completion_tokens"] == (3 if asked == 3 else 5)
        assert server.chat(max_completion_tokens=2).json()["usage"]["completion_tokens"] == 2


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.model_extra["context"]) == ("tiny", 1024)
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="this server has the model 'tiny'"):
        client.models.retrieve("huge")
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="huge", messages=CHAT)
    assert (error.value.param, error.value.code) == ("model", "model_not_found")
