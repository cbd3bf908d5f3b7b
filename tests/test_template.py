"""What a chat template reads: its variables, and the arguments of tool calls in the form that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.runtime.template import template_variables, with_arguments
from reference import steered_llama
from tiny import write_tiny_model

_HEAD = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% for c in m.tool_calls or [] %}"
_TAIL = "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
TEMPLATES = {  # by what they do with the arguments
    "as JSON": "{{ c.function.arguments | tojson }}",
    "as JSON with its name": "{{ c.function | tojson }}",
    "through the items": "{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}",
    "as they are": "{{ c.function.arguments }}",
    "added to text": "{{ '[' + c.function.arguments + ']' }}",
    "either": "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
    "parsed by hand": "{% if c.function.arguments is string %}{{ raise_exception('an object!') }}{% endif %}"
    "{{ c.function.arguments.place }}",
}
WRITTEN = {
    "as JSON": '{"place": "Rome", "n": 2}',
    "as JSON with its name": '{"name": "weather", "arguments": {"place": "Rome", "n": 2}}',
    "through the items": "<place>Rome</place><n>2</n>",
    "as they are": '{"place": "Rome", "n": 2}',
    "added to text": '[{"place": "Rome", "n": 2}]',
    "either": '{"place": "Rome", "n": 2}',
    "parsed by hand": "Rome",
}
ARGUMENTS = {"place": "Rome", "n": 2}


def call(arguments: Any) -> list[Any]:
    function = {"name": "weather", "arguments": arguments}
    return [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "no"},
    ]


Opened = Callable[[str], SteeredLlama]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    llamas = []

    def open_with(template: str) -> SteeredLlama:
        path = write_tiny_model(tmp_path / f"{len(llamas)}.gguf", chat_template=template)
        llamas.append(steered_llama(path, n_ctx=1024))
        return llamas[-1]

    yield open_with
    for llama in llamas:
        llama.close()


def shown(llama: SteeredLlama, messages: list[Any]) -> str:
    return llama.detokenize(chat_prompt(llama, messages), special=True).decode()


@pytest.mark.parametrize("way", TEMPLATES)
def test_arguments_come_as_the_template_needs_them(opened: Opened, way: str) -> None:
    llama = opened(_HEAD + TEMPLATES[way] + _TAIL)
    for arguments in ('{"place": "Rome", "n": 2}', ARGUMENTS):
        assert f"assistant {WRITTEN[way]}<|im_end|>" in shown(llama, call(arguments))
    options: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    usage = llama.create_chat_completion(call('{"place": "Rome", "n": 2}'), **options)["usage"]
    assert usage["prompt_tokens"] == len(chat_prompt(llama, call(ARGUMENTS)))


@pytest.mark.parametrize("text", ["", " "])
def test_no_arguments_are_an_empty_object(opened: Opened, text: str) -> None:
    assert "assistant {}<|im_end|>" in shown(opened(_HEAD + TEMPLATES["as JSON"] + _TAIL), call(text))


@pytest.mark.parametrize("text", ['{"place": "Ro', "[1]", "Rome", '{"a": "\\ud800"}', '{"a": NaN}', "[" * 100_000])
def test_what_is_no_object_stays_text(opened: Opened, text: str) -> None:
    llama = opened(_HEAD + TEMPLATES["as JSON"] + _TAIL)
    assert with_arguments(llama, call(text))[1]["tool_calls"][0]["function"]["arguments"] == text


def test_a_template_that_takes_no_probe_is_tried_with_the_conversation(opened: Opened) -> None:
    refuses = "{% if 'Rain?' not in messages[0].content %}{{ raise_exception('only about rain') }}{% endif %}"
    for way in ("through the items", "added to text"):
        llama = opened(refuses + _HEAD + TEMPLATES[way] + _TAIL)
        assert WRITTEN[way] in shown(llama, call('{"place": "Rome", "n": 2}'))


def test_both_forms_are_tried_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = opened(_HEAD + TEMPLATES["through the items"] + _TAIL)
    shown(llama, call("{}"))
    monkeypatch.setattr("finesteer_local.runtime.template._tried", lambda _: 1 / 0)
    shown(llama, call("{}"))


def test_variables_are_those_that_a_request_can_set(opened: Opened) -> None:
    template = (
        "{% set ns = namespace(x=1) %}{% for m in messages %}{{ m.content }}{{ bos_token }}{% break %}{% endfor %}"
        "{% if tools %}x{% endif %}{% if enable_thinking is defined and not enable_thinking %}<think>{% endif %}"
        "{% generation %}{{ style }}{% endgeneration %}{% for i in range(2) %}{{ loop.index }}{% endfor %}"
    )
    assert template_variables(opened(template)) == {"enable_thinking", "style"}
    assert template_variables(opened("{{ messages[0].content }}")) == frozenset()
