"""Grammars and JSON schemas in the engine, in `SteeredLlama`, and in called tools."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llama_cpp import LlamaGrammar

from finesteer_local import SteeredLlama
from finesteer_local.errors import PromptError
from finesteer_local.runtime import constraint
from finesteer_local.runtime.batch import BatchEngine, Sampling, chat_request
from finesteer_local.runtime.constraint import compiled, json_schema
from reference import plain_llama, steered_llama
from tiny import write_tiny_model

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "Hello there"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"enum": ['a "quote"', "a\nnew line", "\t\\", "😀"]},
        "n": {"type": "integer", "minimum": 3, "maximum": 40, "multipleOf": 5},
        "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/more"}]},
    },
    "required": ["text", "n", "more"],
    "additionalProperties": False,
    "$defs": {
        "more": {"type": "object", "properties": {"free": {"type": "string", "maxLength": 6}}, "maxProperties": 2}
    },
}
TOOL = {"type": "function", "function": {"name": "act", "description": "Act", "parameters": SCHEMA}}
CALL = {"type": "function", "function": {"name": "act"}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SteeredLlama:
    return steered_llama(write_tiny_model(tmp_path_factory.mktemp("constraint") / "tiny.gguf"), n_ctx=1024)


def fits(text: str) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_an_answer_fits_at_any_temperature(llama: SteeredLlama, temperature: float) -> None:
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": 400, "top_k": 0, "min_p": 0.0}
    for seed in range(3):
        wanted = {"type": "json_object", "schema": SCHEMA}
        answer = llama.create_chat_completion(CHAT, response_format=wanted, seed=seed, **options)
        assert answer["choices"][0]["finish_reason"] == "stop"
        fits(answer["choices"][0]["message"]["content"])
        called = llama.create_chat_completion(CHAT, tools=[TOOL], tool_choice=CALL, seed=seed, **options)
        fits(called["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
    answer = llama.create_chat_completion(CHAT, response_format={"type": "json_object"}, **options)
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


def test_the_engine_gives_the_same_answers(llama: SteeredLlama) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 400, "response_format": {"type": "json_object"}}
    options["response_format"]["schema"] = SCHEMA
    alone = [llama.create_chat_completion(CHAT, seed=seed, **options) for seed in range(8)]
    with BatchEngine(llama, n_parallel=8) as engine:
        streams = [engine.submit(chat_request(llama, CHAT, seed=seed, **options)) for seed in range(8)]
        texts = [stream.result().text for stream in streams]
    assert texts == [answer["choices"][0]["message"]["content"] for answer in alone]
    for text in texts:
        fits(text)


def test_a_stream_fits(llama: SteeredLlama) -> None:
    wanted: Any = {"type": "json_object", "schema": SCHEMA}
    chunks = llama.create_chat_completion(CHAT, response_format=wanted, temperature=1.0, seed=2, stream=True)
    fits("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks))


def test_a_schema_that_cannot_be_kept_to_is_an_error_not_any_json(llama: SteeredLlama) -> None:
    for schema in ({"type": "string", "pattern": "^(?=a)b"}, {"type": "array", "uniqueItems": True}):
        wanted: Any = {"type": "json_object", "schema": schema}
        keyword = list(schema)[1]
        with pytest.raises(PromptError, match=keyword):
            llama.create_chat_completion(CHAT, response_format=wanted)
        with pytest.raises(PromptError, match=keyword):
            compiled(llama, chat_request(llama, CHAT, response_format=wanted).sampling.grammar or "")


def test_grammars_of_llama_cpp_work_too(llama: SteeredLlama) -> None:
    grammar = LlamaGrammar.from_string('root ::= "x" [0-9]{2,4} ("!" | "\\u00e9")', verbose=False)
    text = llama("abc", grammar=grammar, temperature=1.0, seed=1, max_tokens=20)["choices"][0]["text"]
    assert text[0] == "x" and text[1:-1].isdigit() and text[-1] in "!é"
    with pytest.raises(PromptError, match="GBNF"):
        llama("abc", grammar=LlamaGrammar.from_string("root ::= (", verbose=False))
    plain = llama("abc", temperature=0.0, max_tokens=8)["choices"][0]["text"]
    assert plain == plain_llama(Path(llama.model_path))("abc", temperature=0.0, max_tokens=8)["choices"][0]["text"]


def test_an_answer_ends_with_an_error_where_the_grammar_becomes_too_complex(llama: SteeredLlama) -> None:
    grammar = 'root ::= "a" x\nx ::= "b" x | x "b" | x x | "b"'
    with pytest.raises(PromptError, match="too complex"):
        llama("abc", grammar=LlamaGrammar.from_string(grammar, verbose=False), logit_bias={2: -100.0}, max_tokens=600)


def test_the_issues_grammars_hold_nobody_up(llama: SteeredLlama) -> None:
    """llama.cpp's sampler never came back from these."""
    pattern = {"type": "string", "pattern": "^(a?b?){0,200}c$"}
    grammars = ['root ::= ("a"? "b"? ){0,200} "c"', json_schema(pattern)]
    plain = chat_request(llama, CHAT, temperature=0.0, max_tokens=30)
    with BatchEngine(llama, n_parallel=8) as engine:
        alone = engine.submit(plain).result().text
        began = time.process_time()  # of this process: other work does not count
        hostile = [
            engine.submit(chat_request(llama, CHAT, grammar=grammar, max_tokens=300, seed=i))
            for i, grammar in enumerate(grammars * 2)
        ]
        beside = [engine.submit(plain) for _ in range(4)]
        assert [stream.result().text for stream in beside] == [alone] * 4
        for stream in hostile:
            assert stream.result().text.strip('"').rstrip("c").strip("ab") == ""
        assert time.process_time() - began < 60


def test_a_compile_without_end_is_given_up(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def endless(*_: Any, **__: Any) -> Any:
        released.wait(30)
        raise RuntimeError

    monkeypatch.setattr(constraint, "LLMatcher", endless)
    monkeypatch.setattr(constraint, "COMPILE_SECONDS", 0.2)
    with pytest.raises(PromptError, match="takes longer"):
        compiled(llama, constraint.Constraint("{}", "JSON schema"))
    released.set()


def test_what_was_compiled_is_remembered_for_its_own_model(llama: SteeredLlama, tmp_path: Path) -> None:
    other = plain_llama(write_tiny_model(tmp_path / "other.gguf"))
    once = compiled(llama, 'root ::= "a"')
    assert compiled(llama, 'root ::= "a"') is once and compiled(llama, once) is once
    assert compiled(other, once) is not once and compiled(other, once) == once


def test_a_long_constant_is_made_tokens_in_pieces(llama: SteeredLlama) -> None:
    """llama.cpp's pre-tokenizers follow a run of letters by recursion, and llguidance asks for its tokens."""
    text = "a" * 5000
    sampling = Sampling(temperature=0.0, grammar=json_schema({"const": text}))
    assert compiled(llama, sampling.grammar or "").begin().allowed().sum() == 1
    assert constraint._Vocabulary(llama)(text)
