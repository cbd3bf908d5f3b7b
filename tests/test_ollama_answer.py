"""Thoughts, text and calls in Ollama's parts, in whatever pieces an answer comes."""

from __future__ import annotations

import pytest

from finesteer_local.server.ollama_answer import AnswerParts, Thoughts, together
from finesteer_local.server.tool_calls import NamedCall, PlainText, TaggedCalls


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("opened", "text", "thoughts", "answer"),
    [
        (False, "plain <think>", "", "plain <think>"),
        (False, "\n<think>\nHm.\n</think>\n\nYes.", "\nHm.\n", "Yes."),
        (True, "Hm. </thin k></think>Yes </think>", "Hm. </thin k>", "Yes </think>"),
        (True, "Hm.", "Hm.", ""),
        (False, "<think>Hm.</thi", "Hm.</thi", ""),
        (False, "<thi", "", "<thi"),
        (False, "[THINK]a</think>b[/THINK]c", "a</think>b", "c"),
    ],
)
def test_thoughts_are_told_from_the_answer(opened: bool, text: str, thoughts: str, answer: str, size: int) -> None:
    parts = AnswerParts(PlainText(), Thoughts(opened))
    pieces = [part for i in range(0, len(text), size) for part in parts.add(text[i : i + size])]
    found = together([*pieces, *parts.end()])
    assert (found.get("thinking", ""), found.get("content", "")) == (thoughts, answer)


def test_calls_are_objects() -> None:
    parts = AnswerParts(TaggedCalls(), Thoughts(False))
    called = ('{"name": "f", "arguments": {"a": 1}}', '{"name": "g"}')
    text = "<think>Hm.</think>" + "".join(f"<tool_call>{call}</tool_call>" for call in called)
    found = together([*parts.add(text), *parts.end()])
    calls = [call["function"] for call in found["tool_calls"]]
    assert calls == [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]
    assert found["thinking"] == "Hm." and "content" not in found


def test_a_call_that_was_cut_is_text() -> None:
    parts = AnswerParts(NamedCall("f"), None)
    assert together([*parts.add('{"a": '), *parts.end()]) == {"content": '{"a": '}
