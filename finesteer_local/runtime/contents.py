"""What people write stays text: a special token in a message's content does not become a control token.

A chat template writes its own special tokens around the contents. To tell the two apart in what it renders, those in
the contents get a mark, a noncharacter of Unicode, behind their first letter; what was rendered is then cut at the
special tokens that are left, as llama.cpp cuts it, and the text between them is tokenised without special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_cpp import Llama

from finesteer_local.runtime.thinking import TAGS
from finesteer_local.runtime.tokens import Special, specials_in

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str | None]
"""What a template makes of messages, as text; None where it hands out no text."""

_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # noncharacters, for a program's own use
_NO_TEXT = ("role", "type", "id", "tool_call_id")
_THOUGHTS = frozenset(tag for tags in TAGS for tag in tags)
_ROUNDS = 8


@dataclass(frozen=True)
class Guard:
    """How to tell the special tokens in messages' contents from those that the template writes.

    Attributes:
        mark: the letter that stands in the special tokens of contents.
        cuts: text is cut at the marks, because the vocabulary has special tokens that llama.cpp always looks for.
    """

    mark: str
    cuts: bool


def guard(llama: Llama, messages: Sequence[Message], render: Render) -> tuple[list[Any], Guard | None]:
    """Mark the special tokens in messages' contents.

    Returns the marked messages and the `Guard` that `tokenise_guarded` needs; the messages as they are and None where
    nothing needs a mark.

    A template that changes what contents say when there are marks in them, or hands out no text, cannot be split: its
    messages stay as they are, and special tokens in them become control tokens.
    """
    given = list(messages)
    if not hasattr(llama, "metadata") or not any(_special(llama, message) for message in given):
        return given, None
    mark = next((mark for mark in _MARKS if not any(_holds(message, mark) for message in given)), None)
    if mark is None:
        return given, None
    marked = [_marked(llama, message, mark) for message in given]
    for _ in range(2):  # a template may tell the time
        try:
            before, after = render(given), render(marked)
        except Exception:  # a template is a program; the caller renders again, and tells
            return given, None
        if before is None or after is None:
            return given, None
        if after.replace(mark, "") == before:
            return marked, Guard(mark, any(not one.control for message in given for one in _special(llama, message)))
    return given, None


def tokenise_guarded(llama: Llama, text: bytes, add_bos: bool, guarded: Guard) -> list[int]:
    """Tokens of a rendered prompt in whose contents special tokens are marked."""
    mark = guarded.mark.encode()
    parts: list[bytes | Special] = [text]
    for special in specials_in(llama, text):
        if special.control:
            parts = [part for whole in parts for part in _split(whole, special)]
    tokens: list[int] = llama.tokenize(b"", add_bos=True, special=True) if add_bos else []
    for i, part in enumerate(parts):
        if isinstance(part, Special):
            tokens += llama.tokenize(part.text, add_bos=False, special=True)
            continue
        before, after = parts[i - 1 : i] or [b""], parts[i + 1 : i + 2] or [b""]
        if isinstance(before[0], Special) and before[0].right:
            part = part.lstrip()
        if isinstance(after[0], Special) and after[0].left:
            part = part.rstrip()
        for piece in part.split(mark) if guarded.cuts else [part.replace(mark, b"")]:
            if piece:
                tokens += llama.tokenize(piece, add_bos=False, special=False)
    return tokens


def _split(part: bytes | Special, special: Special) -> list[bytes | Special]:
    if isinstance(part, Special):
        return [part]
    found: list[bytes | Special] = []
    for i, text in enumerate(part.split(special.text)):
        found += [special, text] if i else [text]
    return [each for each in found if each]


def _special(llama: Llama, message: Message) -> list[Special]:
    """The special tokens in a message that must stay text."""
    text = "\n".join(_strings(message)).encode("utf-8", "replace")
    return [special for special in specials_in(llama, text) if _stays_text(llama, special, message.get("role"))]


def _stays_text(llama: Llama, special: Special, role: Any) -> bool:
    if role == "assistant" and special.text in _THOUGHTS:
        return False  # templates look for them there
    if special.control:
        return True
    if role == "assistant" or special.text.split() != [special.text]:
        return False  # runs of blanks, for instance: some vocabularies have many
    templates = (v for k, v in llama.metadata.items() if k.startswith("tokenizer.chat_template"))
    return any(special.text.decode("utf-8", "replace") in template for template in templates)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, one in value.items() if key not in _NO_TEXT for text in (key, *_strings(one))]
    return [text for one in value for text in _strings(one)] if isinstance(value, list | tuple) else []


def _holds(message: Message, mark: str) -> bool:
    return any(mark in text for text in _strings(message))


def _marked(llama: Llama, message: Message, mark: str) -> Any:
    """`message` with a mark in every special token that must stay text."""

    def text_of(text: str) -> str:
        for _ in range(_ROUNDS):  # a token may show only once another one around it is broken
            left = text.encode("utf-8", "replace")
            found = [one for one in specials_in(llama, left) if _stays_text(llama, one, message.get("role"))]
            if not found:
                break
            for special in found:
                whole = special.text.decode("utf-8", "replace")
                text = text.replace(whole, whole[:1] + mark + whole[1:])
        return text

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return text_of(value)
        if isinstance(value, Mapping):
            return {
                key if key in _NO_TEXT else text_of(key): one if key in _NO_TEXT else of(one)
                for key, one in value.items()
            }
        return [of(one) for one in value] if isinstance(value, list | tuple) else value

    return of(message)
