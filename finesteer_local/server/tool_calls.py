"""From an answer's text, piece by piece, to the calls of tools in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finesteer_local.server.conversation_schemas import Tool

OPENING, CLOSING = "<tool_call>", "</tool_call>"  # Hermes, Qwen and most others


@dataclass(frozen=True)
class Text:
    """Text that is the answer's own."""

    text: str


@dataclass(frozen=True)
class Begins:
    """A call begins."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the JSON of the call that began last."""

    text: str


Part = Text | Begins | Arguments


class Reading(Protocol):
    """Follows one answer."""

    def add(self, text: str) -> list[Part]:
        """What is known once this text has come."""

    def end(self) -> list[Part]:
        """What was held back, once no more text comes."""


class PlainText:
    """An answer without calls."""

    def add(self, text: str) -> list[Part]:
        return [Text(text)]

    def end(self) -> list[Part]:
        return []


class NamedCall:
    """An answer that is the arguments of one tool."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def add(self, text: str) -> list[Part]:
        name, self._name = self._name, None
        return [Begins(name), Arguments(text)] if name is not None else [Arguments(text)]

    def end(self) -> list[Part]:
        return [] if self._name is None else [Begins(self._name)]


class ChosenCall:
    """An answer that fits `choice_schema`: a tool's name, then its arguments."""

    _HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)')

    def __init__(self) -> None:
        self._held, self._begun, self._value = "", False, _Value()

    def add(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        if not self._begun:
            head = self._HEAD.match(self._held)
            if head is None:
                return []
            self._begun, self._held = True, self._held[head.end() :]
            parts.append(Begins(json.loads(head[1])))
        arguments, self._held = self._value.take(self._held), ""
        return [*parts, Arguments(arguments)] if arguments else parts

    def end(self) -> list[Part]:
        return []  # an answer that was cut before the name is no call


class TaggedCalls:
    """An answer in which the model may call tools its own way: JSON between tags. What is no call stays text."""

    def __init__(self) -> None:
        self._held, self._inside, self._n_calls = "", False, 0

    def add(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while True:
            tag = CLOSING if self._inside else OPENING
            before, found, after = self._held.partition(tag)
            if not found:
                break
            self._held = after
            parts += self._call(before) if self._inside else self._words(before)
            self._inside = not self._inside
        if not self._inside:
            n_held = _overlap(self._held, OPENING)
            cut = len(self._held) - n_held
            parts += self._words(self._held[:cut])
            self._held = self._held[cut:]
        return parts

    def end(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._inside:
            return self._call(held, closing="")
        return self._words(held)

    def _words(self, text: str) -> list[Part]:
        if self._n_calls and not text.strip():
            return []  # line ends between calls
        return [Text(text)] if text else []

    def _call(self, text: str, closing: str = CLOSING) -> list[Part]:
        try:
            found = json.loads(text)
            name, arguments = found["name"], found.get("arguments", found.get("parameters", {}))
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return [Text(OPENING + text + closing)]
        self._n_calls += 1
        return [Begins(name), Arguments(json.dumps(arguments, ensure_ascii=False))]


class _Value:
    """Follows one JSON value, and knows where it ends."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped, self._done = 0, False, False, False

    def take(self, text: str) -> str:
        """The part of `text` that belongs to the value."""
        for i, letter in enumerate(text):
            if self._done:
                return text[:i]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string, self._done = False, not self._depth
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}],":
                if not self._depth:
                    self._done = True
                    return text[:i].rstrip()
                if letter != ",":
                    self._depth -= 1
                    self._done = not self._depth
        return text


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, which are an object."""
    parameters = tool.function.parameters or {}
    constrains = {"type", "$ref", "anyOf", "oneOf", "allOf"} & parameters.keys()
    return dict(parameters) if constrains else {"type": "object", **parameters}


def choice_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """The JSON schema of a call of one of several tools."""
    return {"anyOf": [_choice(tool, i) for i, tool in enumerate(tools)]}


def _choice(tool: Tool, place: int) -> dict[str, Any]:
    # With an address of its own, what its references call the root is the schema of the arguments.
    parameters = {"$id": f"tool:{place}", **arguments_schema(tool)} if _refers(tool) else arguments_schema(tool)
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _refers(tool: Tool) -> bool:
    def within(value: Any) -> bool:
        if isinstance(value, Mapping):
            return "$ref" in value or any(within(v) for v in value.values())
        return isinstance(value, list) and any(within(v) for v in value)

    return within(tool.function.parameters)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest beginning of `tag` that `text` ends with."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
