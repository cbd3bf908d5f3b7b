"""An answer's text in Ollama's parts: `content`, `thinking` and `tool_calls`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.prompt import token_text
from finesteer_local.runtime.thinking import TAGS, opened_at
from finesteer_local.server.tool_calls import Begins, Reading, Text

_TAGS = tuple((opening.decode(), closing.decode()) for opening, closing in TAGS)


class Thoughts:
    """Tells the thoughts that an answer begins with from the rest, piece by piece.

    Args:
        opened: the prompt ends inside thoughts.
    """

    def __init__(self, opened: bool) -> None:
        self._closing = tuple(closing for _, closing in _TAGS) if opened else ()
        self._held, self._inside, self._over, self._begun = "", opened, False, False

    def split(self, text: str) -> tuple[str, str]:
        """The thoughts and the answer that `text` adds."""
        self._held += text
        thoughts = ""
        if not self._inside and not self._over:
            start = self._held.lstrip()
            found = [(opening, closing) for opening, closing in _TAGS if start.startswith(opening)]
            if found:
                [(opening, closing)] = found
                self._inside, self._closing, self._held = True, (closing,), start[len(opening) :]
            elif any(opening.startswith(start) for opening, _ in _TAGS):
                return "", ""  # may yet become a tag
            else:
                self._over = self._begun = True
        if self._inside:
            places = [(at, tag) for tag in self._closing if (at := self._held.find(tag)) >= 0]
            if not places:
                held = max(_overlap(self._held, tag) for tag in self._closing)
                cut = len(self._held) - held
                thoughts, self._held = self._held[:cut], self._held[cut:]
                return thoughts, ""
            at, tag = min(places)
            thoughts, self._held = self._held[:at], self._held[at + len(tag) :]
            self._inside, self._over = False, True
        answer, self._held = self._held, ""
        if not self._begun:  # line ends between thoughts and answer
            answer = answer.lstrip()
            self._begun = bool(answer)
        return thoughts, answer

    def end(self) -> tuple[str, str]:
        """What was held back."""
        held, self._held = self._held, ""
        return (held, "") if self._inside else ("", held)


class AnswerParts:
    """From pieces of an answer to what each line of a stream says."""

    def __init__(self, reading: Reading, thoughts: Thoughts | None) -> None:
        self._reading, self._thoughts = reading, thoughts
        self._call: tuple[str, str] | None = None  # the one that has begun: its name, and its arguments so far

    def add(self, text: str) -> list[dict[str, Any]]:
        """What is known once `text` has come."""
        thinking, answer = ("", text) if self._thoughts is None else self._thoughts.split(text)
        return [*_thinking(thinking), *self._read(answer)]

    def end(self) -> list[dict[str, Any]]:
        """What was held back, once no more text comes."""
        thinking, answer = ("", "") if self._thoughts is None else self._thoughts.end()
        return [*_thinking(thinking), *self._read(answer, ends=True)]

    def _read(self, text: str, *, ends: bool = False) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for part in [*(self._reading.add(text) if text else []), *(self._reading.end() if ends else [])]:
            if isinstance(part, Text):
                found.append({"content": part.text})
            elif isinstance(part, Begins):
                found += self._called()
                self._call = (part.name, "")
            elif self._call is not None:
                self._call = (self._call[0], self._call[1] + part.text)
        return [*found, *self._called()] if ends else found

    def _called(self) -> list[dict[str, Any]]:
        """The call that has begun, now complete; a call that was cut becomes text."""
        if self._call is None:
            return []
        (name, text), self._call = self._call, None
        try:
            return [{"tool_calls": [{"function": {"name": name, "arguments": json.loads(text)}}]}]
        except ValueError:
            return [{"content": text}]


def _thinking(text: str) -> list[dict[str, Any]]:
    return [{"thinking": text}] if text else []


def together(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All parts as one."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found[name] + value if name in found else value
    return found


def ends_in_thoughts(llama: SteeredLlama, prompt: Sequence[int]) -> bool:
    """Whether the template has opened the answer's thoughts."""
    last = list(prompt[-16:])
    return opened_at(last, token_text(llama), raw=True) is not None


def _overlap(text: str, tag: str) -> int:
    """Length of the longest beginning of `tag` that `text` ends with."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
