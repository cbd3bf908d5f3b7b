"""llama.cpp's grammar format (GBNF, its `grammars/README.md`) in llguidance's variant of Lark.

llguidance brings `gbnf_to_lark`, which takes no `\\u` escape, no rule called `start`, and no two names that differ in
case alone. A rule that does not refer to itself, however indirectly, becomes a terminal, which llguidance follows as a
regular expression; a grammar of such rules alone becomes one, so that no choice between its parts is made too early.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from finesteer_local.errors import PromptError

MAX_GRAMMAR = 1 << 16  # letters
MAX_RULES = 2000
MAX_PARTS = 50_000
MAX_DEPTH = 200  # of brackets
MAX_REPEATS = 1 << 14

_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]|\#[^\n]*)+)
    |(?P<head>[A-Za-z0-9_-]+)(?=[ \t]*::=)[ \t]*::=
    |(?P<name>[A-Za-z0-9_-]+)
    |"(?P<text>(?:[^"\\]|\\.)*)"
    |\[(?P<letters>(?:[^\]\\]|\\.)*)\]
    |\{[ \t]*(?P<least>\d+)[ \t]*(?P<comma>,?)[ \t]*(?P<most>\d*)[ \t]*\}
    |(?P<mark>[.()|*+?])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|(.)", re.DOTALL)
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass
class _Rule:
    """What a rule may be: parts of Lark, and among them the names of other rules."""

    parts: list[str | tuple[str]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        return {part[0] for part in self.parts if isinstance(part, tuple)}


def lark(text: str) -> str:
    """The grammar in Lark, its rule `root` as `start`.

    Raises:
        PromptError: it is no valid GBNF, or too large.
    """
    if len(text) > MAX_GRAMMAR:
        raise PromptError(f"the grammar is longer than {MAX_GRAMMAR:,} letters")
    rules = _rules(text)
    if "root" not in rules:
        raise _invalid("it has no rule `root`")
    for rule in rules.values():
        for name in rule.names - rules.keys():
            raise _invalid(f"it has no rule {name!r}")
    terminals = _terminals(rules)
    sizes: dict[str, int] = {}
    for name in terminals:  # those that a rule uses come before it
        sizes[name] = sum(sizes[part[0]] if isinstance(part, tuple) else 1 for part in rules[name].parts)
        if sizes[name] > MAX_PARTS:
            raise PromptError(f"the grammar is too complex: written out it has more than {MAX_PARTS:,} parts")
    names = {name: f"{'T' if name in sizes else 'r'}{i}" for i, name in enumerate(rules)}
    lines = ["%llguidance {}", f"start: {names['root']}"]
    for name, rule in rules.items():
        parts = (names[part[0]] if isinstance(part, tuple) else part for part in rule.parts)
        lines.append(f"{names[name]}: {' '.join(parts)}")
    return "\n".join(lines) + "\n"


def _rules(text: str) -> dict[str, _Rule]:
    rules: dict[str, _Rule] = {}
    writer: _Writer | None = None
    for match in _matches(text):
        kind, found = match.lastgroup, match.group(match.lastgroup or 0)
        if kind == "head":
            if writer is not None:
                writer.end()
            if len(rules) == MAX_RULES:
                raise PromptError(f"the grammar has more than {MAX_RULES:,} rules")
            writer = _Writer(rules.setdefault(found, _Rule()))
            writer.rule.parts.clear()  # the last one of a name counts
        elif writer is None:
            raise _invalid(f"it begins with {match.group()[:20]!r} instead of a rule")
        elif kind == "name":
            writer.element((found,))
        elif kind == "text":
            writer.element(json.dumps("".join(_letters(found)), ensure_ascii=False))
        elif kind == "letters":
            writer.element(f"/{_class(found)}/")
        elif match.group("least") is not None:
            least, most = int(match["least"]), match["most"]
            writer.repeat(least, int(most) if most else None if match["comma"] else least)
        else:
            writer.mark(found)
    if writer is not None:
        writer.end()
    return rules


def _matches(text: str) -> Iterator[re.Match[str]]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            raise _invalid(f"line {line} cannot be read from {text[place : place + 20]!r} on")
        place = match.end()
        if match.lastgroup != "space":
            yield match


class _Writer:
    """Writes one rule, part by part."""

    def __init__(self, rule: _Rule) -> None:
        self.rule = rule
        self._open: list[int] = []  # places of the brackets that are open
        self._last: int | None = None  # place where the last element begins
        self._repeated = False

    def element(self, part: str | tuple[str]) -> None:
        self._last, self._repeated = len(self.rule.parts), False
        self.rule.parts.append(part)

    def mark(self, mark: str) -> None:
        if mark == "(":
            if len(self._open) == MAX_DEPTH:
                raise PromptError(f"the grammar's brackets are nested deeper than {MAX_DEPTH}")
            self._open.append(len(self.rule.parts))
            self.rule.parts.append(mark)
            self._last = None
        elif mark == ")":
            if not self._open:
                raise _invalid("it closes a bracket that is not open")
            self._fill()
            self.rule.parts.append(mark)
            self._last, self._repeated = self._open.pop(), False
        elif mark == "|":
            self._fill()
            self.rule.parts.append(mark)
            self._last = None
        elif mark == ".":
            self.element("/(?s:.)/")
        else:
            self.repeat(int(mark == "+"), 1 if mark == "?" else None)

    def repeat(self, least: int, most: int | None) -> None:
        """Repeat the last element."""
        if self._last is None:
            raise _invalid("it repeats nothing")
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise _invalid(f"it repeats from {least} to {most} times")
        parts = self.rule.parts
        if most == 0:
            parts[self._last :] = ['""']
            return
        if self._repeated:
            parts[self._last :] = ["(", *parts[self._last :], ")"]
        sign = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
        parts[-1:] = [*parts[-1:], sign or f"{{{least},{'' if most is None else most}}}"]
        self._repeated = True

    def end(self) -> None:
        if self._open:
            raise _invalid("a bracket is not closed")
        self._fill()

    def _fill(self) -> None:
        """Write an alternative that is empty."""
        if self._last is None:
            self.rule.parts.append('""')


def _terminals(rules: dict[str, _Rule]) -> list[str]:
    """The rules that refer to no rule that refers to itself, each after those that it refers to."""
    users: dict[str, list[str]] = {}
    missing = {}
    for name, rule in rules.items():
        missing[name] = len(rule.names)
        for other in rule.names:
            users.setdefault(other, []).append(name)
    found, ready = list[str](), [name for name, n in missing.items() if n == 0]
    while ready:
        name = ready.pop()
        found.append(name)
        for user in users.get(name, ()):
            missing[user] -= 1
            if missing[user] == 0:
                ready.append(user)
    return found


def _letters(text: str) -> Iterator[str]:
    for match in _ESCAPE.finditer(text):
        code = match[1] or match[2] or match[3]
        if code is None:
            yield _NAMED.get(match[4], match[4]) if match[4] else match[5]
        elif int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
            raise _invalid(f"{match[0]} is no letter")
        else:
            yield chr(int(code, 16))


def _class(text: str) -> str:
    """A regular expression for one of some letters."""
    negated, text = text.startswith("^"), text.removeprefix("^")
    letters = [(letter, match) for match, letter in zip(_ESCAPE.finditer(text), _letters(text), strict=True)]
    found, i = "", 0
    while i < len(letters):
        first = last = letters[i][0]
        if i + 2 < len(letters) and letters[i + 1][1][0] == "-":
            last, i = letters[i + 2][0], i + 2
            if last < first:
                raise _invalid(f"the range {first!r} to {last!r} is empty")
        found += f"\\u{{{ord(first):x}}}" + (f"-\\u{{{ord(last):x}}}" if last != first else "")
        i += 1
    if not found:
        raise _invalid("a class of letters is empty")
    return f"[{'^' if negated else ''}{found}]"


def _invalid(why: str) -> PromptError:
    return PromptError(f"the grammar is not valid GBNF: {why}")
