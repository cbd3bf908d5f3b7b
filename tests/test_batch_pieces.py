"""Cuts depend on the request alone, and a beginning serves another prompt only where both were cut alike."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from finesteer_local.runtime.batch.pieces import MIN_SHARED, Sizes, common_cut, cuts, cuts_from

SIZES = Sizes(chunk=16, whole=40)


def test_a_short_prompt_is_cut_before_its_last_turn() -> None:
    assert cuts(30, 12, sizes=SIZES, shares=True) == [12, 30]
    assert cuts(30, MIN_SHARED - 1, sizes=SIZES, shares=True) == [30]
    assert cuts(30, 12, sizes=SIZES, shares=False) == [30]


def test_a_long_beginning_and_a_long_turn_come_in_chunks() -> None:
    assert cuts(60, 40, sizes=SIZES, shares=True) == [16, 32, 40, 60]
    assert cuts(90, 10, sizes=SIZES, shares=True) == [10, 26, 42, 58, 74, 90]
    assert cuts(50, 0, sizes=SIZES, shares=True) == [16, 32, 48, 50]


def test_no_token_is_read_alone() -> None:
    assert cuts(49, 0, sizes=SIZES, shares=True) == [16, 32, 49]
    assert cuts(20, 17, sizes=SIZES, shares=True) == [17, 20]
    assert cuts(12, 11, sizes=SIZES, shares=True) == [12]
    assert cuts_from(10, 59, sizes=SIZES) == [26, 42, 59]
    assert cuts_from(20, 60, sizes=SIZES) == [60]


@given(st.integers(1, 300), st.integers(0, 299), st.booleans())
def test_pieces(n_prompt: int, turn: int, shares: bool) -> None:
    ends = cuts(n_prompt, min(turn, n_prompt - 1), sizes=SIZES, shares=shares)
    lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == n_prompt
    assert all(1 < n <= SIZES.whole + 1 for n in lengths) or lengths == [1]
    again = cuts_from(turn % n_prompt, n_prompt, sizes=SIZES)
    assert again[-1] == n_prompt and all(b - a > 1 for a, b in itertools.pairwise(again))


def test_the_common_cut() -> None:
    prompt, ends = list(range(50)), [16, 32, 40, 50]
    assert common_cut(prompt, [16, 32, 40], prompt, ends) == 40
    assert common_cut(prompt[:32], [16, 32], prompt, ends) == 32
    assert common_cut([*prompt[:20], 99, *prompt[21:]], [16, 32, 40], prompt, ends) == 16
    assert common_cut(prompt, [12, 28, 40], prompt, ends) == 0  # cut elsewhere
    assert common_cut(prompt, [16, 40], prompt, ends) == 16
    assert common_cut(prompt, [*ends], prompt, ends) == 40  # at least one token is read
    assert common_cut([], [], prompt, ends) == 0
