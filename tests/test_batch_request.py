"""A request says what llama-cpp-python would have been asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from batching import Batch
from finesteer_local.errors import PromptError
from finesteer_local.runtime.batch import Sampling, Steer, chat_request, completion_request
from finesteer_local.runtime.constraint import json_schema
from reference import plain_llama, steered_llama
from tiny import make_profile, write_tiny_model

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]


def test_a_chat_request_gets_llama_cpp_pythons_answer(tiny_model: Path) -> None:
    llama, plain = steered_llama(tiny_model), plain_llama(tiny_model)
    for options in (
        {"temperature": 0.0, "max_tokens": 9},
        {"temperature": 1.2, "max_tokens": 9, "seed": 5, "top_k": 0},
        {"temperature": 0.0, "max_tokens": 9, "stop": ["a", "e"], "repeat_penalty": 1.4},
        {"max_tokens": 6, "seed": 3},
        {
            "temperature": 0.0,
            "max_tokens": 30,
            "response_format": {"type": "json_object", "schema": {"type": "boolean"}},
        },
    ):
        plain.reset()
        plain._ctx.kv_cache_clear()
        reply = plain.create_chat_completion(CHAT, **options)
        with Batch(llama, 1) as batch:
            answer = batch.run(chat_request(llama, CHAT, **options))[0]
        assert answer.text == reply["choices"][0]["message"]["content"]
        assert answer.finished.reason == reply["choices"][0]["finish_reason"]
        usage = reply["usage"]
        assert (answer.finished.n_prompt, answer.finished.n_answer) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )


def test_the_last_user_message_is_found(tiny: Path) -> None:
    llama = steered_llama(tiny)
    request = chat_request(llama, CHAT)
    assert llama.detokenize(list(request.prompt[request.turn :]), special=True).startswith(b"Hello")
    assert request.stop and request.max_tokens is None


def test_tools_bring_their_grammar(tiny: Path) -> None:
    llama = steered_llama(tiny)
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "count", "parameters": parameters}}
    choice = {"type": "function", "function": {"name": "count"}}
    request = chat_request(llama, CHAT, tools=[tool], tool_choice=choice)
    assert request.sampling.grammar == json_schema(parameters)


def test_a_raw_prompt_gets_llama_cpp_pythons_answer(tiny: Path) -> None:
    llama, plain = steered_llama(tiny), plain_llama(tiny)
    reply = plain.create_completion("One, two", max_tokens=9, temperature=0.0)
    request = completion_request(llama, "One, two", max_tokens=9, temperature=0.0)
    with Batch(llama, 1) as batch:
        answer = batch.run(request)[0]
    assert answer.text == reply["choices"][0]["text"]
    assert answer.finished.n_prompt == reply["usage"]["prompt_tokens"]
    assert completion_request(llama, [5, 6]).prompt == [5, 6]
    assert completion_request(llama, "a", echo=True, logprobs=2).prompt_logprobs


def test_defaults_are_llama_cpp_pythons(tiny: Path) -> None:
    llama = steered_llama(tiny)
    assert chat_request(llama, CHAT).sampling.temperature == 0.2
    assert completion_request(llama, "a").sampling == Sampling()
    assert completion_request(llama, "a").max_tokens == 16


def test_bias_by_text_keys(tiny: Path) -> None:
    assert completion_request(steered_llama(tiny), "a", logit_bias={"7": 3}).sampling.logit_bias == {7: 3.0}


def test_what_has_no_counterpart(tiny: Path) -> None:
    with pytest.raises(PromptError, match="logits_processor"):
        completion_request(steered_llama(tiny), "a", logits_processor=[lambda ids, logits: logits])


def test_a_template_that_rejects_the_chat(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "strict.gguf", chat_template="{{ raise_exception('no') }}")
    with pytest.raises(PromptError, match="rejects this conversation: no"):
        chat_request(steered_llama(path), CHAT)


def test_the_active_steering_of_a_model(tiny: Path) -> None:
    llama = steered_llama(tiny)
    assert llama.steer == ()
    profile = make_profile(tiny)
    llama.set_profiles([profile], strength=0.5, scope="turn")
    assert llama.steer == (Steer(profile, 0.5, "turn"),)
