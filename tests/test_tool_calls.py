"""Calls of tools in an answer's text, in whatever pieces it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finesteer_local.server.conversation_schemas import Tool
from finesteer_local.server.tool_calls import (
    Arguments,
    Begins,
    ChosenCall,
    NamedCall,
    PlainText,
    Reading,
    TaggedCalls,
    Text,
    arguments_schema,
    choice_schema,
)


def read(reading: Reading, text: str, size: int) -> list[Any]:
    """What it makes of `text` in pieces of `size` letters: text, and (name, arguments) of each call."""
    parts = [part for i in range(0, len(text), size) for part in reading.add(text[i : i + size])] + reading.end()
    found: list[Any] = []
    for part in parts:
        if isinstance(part, Begins):
            found.append((part.name, ""))
        elif isinstance(part, Arguments):
            found[-1] = (found[-1][0], found[-1][1] + part.text)
        elif found and isinstance(found[-1], str):
            found[-1] += part.text
        else:
            found.append(part.text)
    return found


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("reading", "text", "found"),
    [
        (PlainText, "a<tool_call>", ["a<tool_call>"]),
        (lambda: NamedCall("f"), '{"a": 1}', [("f", '{"a": 1}')]),
        (ChosenCall, '{"name": "f", "arguments": {"a": "}\\"{", "b": [1]}}', [("f", '{"a": "}\\"{", "b": [1]}')]),
        (ChosenCall, '{ "name":"a\\"b\\u00e9" ,\n"arguments" : {}\n}', [('a"bé', "{}")]),
        (ChosenCall, '{"name": "f", "arguments": {"a": "cu', [("f", '{"a": "cu')]),
        (ChosenCall, '{"name": "f"', []),
        (ChosenCall, '{"name": "f", "arguments": 12}', [("f", "12")]),
        (TaggedCalls, "plain < text <tool", ["plain < text <tool"]),
        (TaggedCalls, 'Hm\n<tool_call>{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ["Hm\n", ("f", '{"a": 1}')]),
        (
            TaggedCalls,
            '<tool_call>{"name": "f", "parameters": {}}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n',
            [("f", "{}"), ("g", "{}")],
        ),
        (TaggedCalls, "<tool_call>no call</tool_call> x", ["<tool_call>no call</tool_call> x"]),
        (TaggedCalls, '<tool_call>{"name": 1}</tool_call>', ['<tool_call>{"name": 1}</tool_call>']),
        (TaggedCalls, '<tool_call>{"name": "f", "argu', ['<tool_call>{"name": "f", "argu']),
        (TaggedCalls, '<tool_call>{"name": "f"}', [("f", "{}")]),
    ],
)  # fmt: skip
def test_calls_are_found_in_any_pieces(reading: Any, text: str, found: list[Any], size: int) -> None:
    assert read(reading(), text, size) == found


def test_text_before_a_call_is_not_held_back() -> None:
    reading = TaggedCalls()
    assert reading.add("Let me see <") == [Text("Let me see ")]
    assert reading.add("b") == [Text("<b")]


def tool(name: str, parameters: Any) -> Tool:
    return Tool.model_validate({"type": "function", "function": {"name": name, "parameters": parameters}})


def test_arguments_are_an_object() -> None:
    assert arguments_schema(tool("f", None)) == {"type": "object"}
    assert arguments_schema(tool("f", {"properties": {"a": {}}}))["type"] == "object"
    assert arguments_schema(tool("f", {"$ref": "#/$defs/A", "$defs": {"A": {}}})).keys() == {"$ref", "$defs"}


def test_references_stay_within_their_tool() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    refers = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": [1]}}}
    other = {**refers, "$defs": {"A": {"enum": [2]}}}
    valid = jsonschema.Draft202012Validator(choice_schema([tool("f", refers), tool("g", other)])).is_valid
    for name, value, fits in (("f", 1, True), ("f", 2, False), ("g", 2, True), ("g", 1, False), ("h", 1, False)):
        assert valid(json.loads(json.dumps({"name": name, "arguments": {"a": value}}))) is fits
