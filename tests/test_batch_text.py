"""Whole letters only, and nothing that may yet become a stop word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from finesteer_local.runtime.batch.text import AnswerText


def feed(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    text = AnswerText(stop)
    shown = []
    for piece in pieces:
        shown.append(text.add(piece))
        if text.stopped_by is not None:
            return shown, text.stopped_by
    return [*shown, text.end()], None


def test_letters_are_shown_whole() -> None:
    data = "é😀x".encode()
    assert feed([data[i : i + 1] for i in range(len(data))])[0] == ["", "é", "", "", "", "😀", "x", ""]


def test_bytes_that_are_no_text_are_left_out() -> None:
    assert feed([b"a\xff", b"b\xf0\x9f"])[0] == ["a", "b", ""]


def test_a_stop_word_over_three_tokens() -> None:
    assert feed([b"abc<", b"en", b"d>more"], ("<end>",)) == (["abc", "", ""], "<end>")


def test_what_might_have_become_a_stop_word() -> None:
    assert feed([b"a<e", b"x<en"], ("<end>",))[0] == ["a", "<ex", "<en"]


def test_the_first_of_two_stop_words_in_one_token() -> None:
    assert feed([b"one two three"], ("three", "two")) == (["one "], "two")


@given(st.lists(st.text("ab<é", max_size=4), max_size=8), st.lists(st.text("ab<é", min_size=1, max_size=4), max_size=3))
def test_as_if_all_came_at_once(parts: list[str], stop: list[str]) -> None:
    whole = "".join(parts)
    ends = {word: whole.find(word) + len(word.encode()) for word in stop if word in whole}
    shown, stopped_by = feed([letter.encode() for letter in whole], tuple(stop))
    if not ends:
        assert ("".join(shown), stopped_by) == (whole, None)
    else:
        # letter by letter, the stop word that is complete first ends the text
        first = min(whole.find(word) + len(word) for word in ends)
        begins = min(whole.find(word) for word in ends if whole.find(word) + len(word) == first)
        assert "".join(shown) == whole[:begins]


@given(st.binary(max_size=30), st.lists(st.integers(1, 5), max_size=20))
def test_any_bytes_cut_anywhere(data: bytes, lengths: list[int]) -> None:
    pieces, at = [], 0
    for length in lengths:
        pieces.append(data[at : at + length])
        at += length
    assert "".join(feed([*pieces, data[at:]])[0]) == data.decode(errors="ignore")
