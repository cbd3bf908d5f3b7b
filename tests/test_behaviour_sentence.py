"""What a behaviour's sentence is understood to say."""

from __future__ import annotations

import pytest

from finesteer_local.errors import DataError
from finesteer_local.training.behaviour.sentence import MAX_LETTERS, read_sentence


@pytest.mark.parametrize(
    ("sentence", "what", "when", "exception"),
    [
        ("answers briefly, but never shortens code", "answers briefly", "", "never shortens code"),
        ("Talks like a pirate, except in answers about health.", "talks like a pirate", "", "in answers about health"),
        ("rhymes unless somebody is sad", "rhymes", "", "somebody is sad"),
        ("apologises when the user complains", "apologises", "when the user complains", ""),
        ("If the user complains, it apologises", "apologises", "when the user complains", ""),
        ("gives a source only for questions of history", "gives a source", "only for questions of history", ""),
        ("asks back when unsure, but not in code", "asks back", "when unsure", "in code"),
        ("speaks  German\n", "speaks German", "", ""),
    ],
)
def test_what_is_done_and_where(sentence: str, what: str, when: str, exception: str) -> None:
    found = read_sentence(sentence)
    assert (found.what, found.when, found.exception) == (what, when, exception)
    assert found.selective == bool(when or exception)


@pytest.mark.parametrize("sentence", ["", "  . ", "x" * (MAX_LETTERS + 1)])
def test_what_says_nothing(sentence: str) -> None:
    with pytest.raises(DataError):
        read_sentence(sentence)
