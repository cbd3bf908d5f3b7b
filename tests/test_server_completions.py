"""`/v1/completions`: raw text, several prompts, log-probabilities of the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import Request
from reference import steered_llama
from serving import Served
from tiny import make_profile

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def profile(tiny: Path) -> Profile:
    return make_profile(tiny, name="firm", gate="selective", strength=2.0)


@pytest.fixture(scope="module")
def llama(tiny: Path) -> Iterator[SteeredLlama]:
    llama = steered_llama(tiny, n_ctx=1024, logits_all=True)
    yield llama
    llama.close()


def test_several_prompts_are_decided_one_by_one(client: openai.OpenAI, llama: SteeredLlama, profile: Profile) -> None:
    prompts = [f"The {word} of the" for word in ("end", "house", "sea", "sum", "art", "law")]
    answer = client.completions.create(prompt=prompts, **GREEDY)
    opened = set()
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        llama.set_profiles([profile])
        llama.forget()
        expected = llama.create_completion(prompt, temperature=0.0, max_tokens=6)
        assert choice.text == expected["choices"][0]["text"]
        [decision] = choice.model_extra["steering"]["decisions"]
        assert decision["open"] == llama.last_decision.open
        opened.add(decision["open"])
    assert opened == {True, False}
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage.completion_tokens == 36


def test_tokens_are_prompts_too(client: openai.OpenAI, llama: SteeredLlama) -> None:
    tokens = llama.tokenize(b"The end of", add_bos=False)
    text = client.completions.create(prompt="The end of", **GREEDY).choices[0].text
    assert client.completions.create(prompt=tokens, **GREEDY).choices[0].text == text
    batch = client.completions.create(prompt=[tokens, tokens], **GREEDY)
    assert [choice.text for choice in batch.choices] == [text, text]
    echoed = client.completions.create(prompt=tokens, echo=True, **GREEDY)
    assert echoed.choices[0].text == "The end of" + text


def test_streams_of_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["The end", "In the house of"]
    whole = client.completions.create(prompt=prompts, **GREEDY)
    texts, decided, finished = ["", ""], [None, None], [None, None]
    for chunk in client.completions.create(prompt=prompts, **GREEDY, stream=True):
        [choice] = chunk.choices
        if decided[choice.index] is None:
            decided[choice.index] = choice.model_extra["steering"]
        texts[choice.index] += choice.text
        finished[choice.index] = choice.finish_reason or finished[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert decided == [choice.model_extra["steering"] for choice in whole.choices]
    assert finished == ["length", "length"]


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, llama: SteeredLlama) -> None:
    options = {"prompt": "the sun is on", "echo": True, "logprobs": 2, "temperature": 0, "max_tokens": 3}
    found = client.completions.create(model="tiny", **options, extra_body={"steering": False}).choices[0]
    scores = found.logprobs
    assert "".join(scores.tokens) == found.text
    assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
    for offset, token in zip(scores.text_offset, scores.tokens, strict=True):
        assert found.text[offset:].startswith(token)
    tokens = llama.tokenize(found.text.encode(), add_bos=False)
    llama.set_profiles()
    llama.forget()
    llama.eval(tokens)
    logits = llama.scores[: len(tokens)].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for i in range(1, len(tokens)):
        row = logprobs[i - 1]
        assert scores.token_logprobs[i] == pytest.approx(row[tokens[i]], abs=1e-4)
        likeliest = llama.detokenize([int(row.argmax())]).decode()
        assert max(scores.top_logprobs[i], key=scores.top_logprobs[i].get) == likeliest


def test_a_prompt_is_scored_without_an_answer(client: openai.OpenAI) -> None:
    scored = {"model": "tiny", "prompt": "the sun is on", "echo": True, "logprobs": 1, "temperature": 0}
    alone = client.completions.create(**scored, max_tokens=0)
    [choice] = alone.choices
    assert choice.text == "the sun is on" and alone.usage.completion_tokens == 0
    longer = client.completions.create(**scored, max_tokens=2).choices[0]
    n_tokens = len(choice.logprobs.tokens)
    assert longer.logprobs.token_logprobs[:n_tokens] == choice.logprobs.token_logprobs


def test_the_token_after_a_scored_prompt_is_scored_whatever_it_is(client: openai.OpenAI) -> None:
    """Clients cut it off again: were there none because the answer ended, they would cut off the prompt's last one."""
    options: dict[str, Any] = {"model": "tiny", "prompt": "the sun", "temperature": 0, "max_tokens": 1, "logprobs": 1}
    going_on = client.completions.create(**options, echo=True).choices[0]
    ended = client.completions.create(**options, echo=True, logit_bias={"2": 100}).choices[0]
    assert (ended.text, ended.finish_reason, ended.logprobs.tokens[-1]) == ("the sun", "stop", "")
    assert ended.logprobs.token_logprobs[:-1] == going_on.logprobs.token_logprobs[:-1]
    assert ended.logprobs.token_logprobs[-1] < 0
    assert client.completions.create(**options, logit_bias={"2": 100}).choices[0].logprobs.tokens == []


def test_the_default_length_is_openais(client: openai.OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="the").usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "at least 1 character"),
        ([], "at least 1 item"),
        ([[]], "at least 1 item"),
        ([1, 100_000], "vocabulary"),
        (["x"] * 33, "32 prompts"),
        ("x" * 2000, "the context only 1,024"),
        ({"a": 1}, "prompt"),
    ],
)
def test_prompts_that_cannot_be_used(server: Served, prompt: Any, said: str) -> None:
    answer = server.post("/v1/completions", {"prompt": prompt})
    error = answer.json()["error"]
    assert answer.status_code == 400 and said in error["message"]
    assert error["param"] is not None and error["param"].startswith("prompt")


def test_a_request_is_checked_once(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, check = list[Request](), Request.check

    def counting(self: Request, *args: Any) -> None:
        checked.append(self)
        check(self, *args)

    monkeypatch.setattr(Request, "check", counting)
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    for path, body, n in (
        ("/v1/completions", {"prompt": ["Hello", "there"], "max_tokens": 1}, 2),
        ("/v1/chat/completions", {**chat, "max_tokens": 1}, 1),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 1}, 1),
        ("/api/chat", {**chat, "model": "tiny", "stream": False, "options": {"num_predict": 1}}, 1),
        ("/v1/steering/explain", chat, 1),
    ):
        checked.clear()
        assert server.post(path, body).status_code == 200
        assert len(checked) == n


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"steering": {"skip_thinking": True}}])
def test_a_token_that_there_is_not(server: Served, more: dict[str, Any]) -> None:
    """llama.cpp ends the process where it is asked for such a token's text."""
    answer = server.post("/v1/completions", {"prompt": [[1, 2], [1, 10**6]], "max_tokens": 1, **more})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "prompt" and "vocabulary" in error["message"]
    assert server.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 1, **more}).status_code == 200


def test_one_prompt_that_is_too_long_refuses_all(server: Served) -> None:
    answer = server.post("/v1/completions", {"prompt": ["Hello", "Hello " * 5000], "max_tokens": 400})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    server.wait_until_idle()
