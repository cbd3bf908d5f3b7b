"""Where thoughts begin and end."""

from __future__ import annotations

import pytest

from finesteer_local.runtime.thinking import TAGS, Thinking, opened_at


def opens(*pieces: str, opened: bool = False) -> list[bool]:
    """Whether the answer is inside thoughts after each piece."""
    thinking = Thinking(opened)
    found = []
    for piece in pieces:
        thinking.add(piece.encode())
        found.append(thinking.open)
    return found


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (("<think>", "a", "</think>", "b", "<think>", "c"), "110000"),
        (("\n", "<", "think", ">", "a", "</", "think", ">", "b"), "000111100"),
        (("<think>\n</think>\n", "b"), "00"),
        (("hello", "<think>", "a"), "000"),
        (("<thin", "g>", "<think>"), "000"),
        (("<think", "></thi", "nk>x"), "010"),
        (("[THINK]", "</think>", "[/THINK]", "b"), "1100"),
        (("<|channel|>", "analysis", "<|message|>", "a", "<|end|>", "<|channel|>", "final", "<|message|>"), "00111110"),
        (("<|channel|>", "final", "<|message|>", "a"), "0000"),
    ],
)
def test_an_answer(pieces: tuple[str, ...], expected: str) -> None:
    assert opens(*pieces) == [c == "1" for c in expected]


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_a_prompt_that_opened_them(opening: bytes, closing: bytes) -> None:
    half = len(closing) // 2
    first, second = closing[:half].decode(), closing[half:].decode()
    assert opens("a", first, second, "b", opening.decode(), opened=True) == [True, True, False, False, False]


def test_long_thoughts_are_not_kept_to_be_searched_again() -> None:
    thinking = Thinking(opened=True)
    for _ in range(1000):
        thinking.add(b"</thin ")
    assert thinking.open and len(thinking._tail) < 40


def test_guessed_tokens_that_were_wrong() -> None:
    thinking = Thinking(opened=True)
    for piece in (b"a", b"</think>", b"b"):
        thinking.add(piece)
    assert not thinking.open
    thinking.cut(1)
    assert thinking.open
    thinking.add(b"</think>")
    assert not thinking.open
    thinking.cut(2)
    assert not thinking.open


TEXTS = dict(enumerate([b"u", b"<think>", b"\n", b"<", b"think", b">", b"</think>", b"x"]))


@pytest.mark.parametrize(
    ("tokens", "first", "raw", "expected"),
    [
        ([0, 1, 2], 0, False, 1),
        ([0, 3, 4, 5, 2], 0, False, 1),
        ([0, 1, 2, 7], 0, False, 1),  # a template that begins the thoughts itself
        ([0, 1, 6, 2], 0, False, None),  # thoughts that the template leaves empty
        ([0, 7], 0, False, None),
        ([1, 7, 7], 1, False, None),  # what the user wrote
        ([1, 7, 1], 1, False, 2),
        ([0, 1, 2], 0, True, 1),
        ([0, 1, 2, 7], 0, True, None),
        ([], 0, True, None),
    ],
)
def test_a_prompt_that_ends_in_thoughts(tokens: list[int], first: int, raw: bool, expected: int | None) -> None:
    assert opened_at(tokens, TEXTS.__getitem__, first, raw=raw) == expected
