"""Rates, intervals, curves."""

from __future__ import annotations

import numpy as np
import pytest

from finesteer_local.judges.statistics import auroc, excess, mean, roc, share


def test_wilson_interval() -> None:
    """Values from the formula in Brown, Cai and DasGupta (2001), to three digits."""
    rate = share([True] * 8 + [False] * 2)
    assert rate and (rate.value, rate.n) == (0.8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    none = share([False] * 10)
    assert none and none.low == pytest.approx(0, abs=1e-9) and none.high == pytest.approx(0.278, abs=1e-3)
    every = share([True] * 10)
    assert every and every.high == pytest.approx(1) and every.low == pytest.approx(0.722, abs=1e-3)


def test_of_nothing() -> None:
    assert share([]) is None and mean([]) is None and excess([], []) is None


def test_mean_is_bootstrapped_and_repeatable() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400).tolist()
    rate = mean(values)
    assert rate == mean(values)
    assert rate and rate.low < rate.value < rate.high
    assert rate.high - rate.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)  # the standard error is 0.1


def test_excess_is_paired() -> None:
    rate = excess([True, True, False, False], [True, False, False, False])
    assert rate and rate.value == 0.25
    same = excess([True, False] * 50, [True, False] * 50)
    assert same and (same.value, same.low, same.high) == (0, 0, 0)  # unpaired, it would have a width
    less = excess([False, False], [True, False])
    assert less and less.value == -0.5


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 3], [2, 4], 0.25),
        ([1, 1, 1], [1, 1], 0.5),
        ([2, 1], [1], 0.75),
        ([0.1, 0.4, 0.35, 0.8], [0.1, 0.4, 0.2], 1 - (0.5 + 1 + 1 + 0.5 + 1) / 12),
    ],
)
def test_auroc_is_the_share_of_pairs_in_order(positive: list[float], negative: list[float], area: float) -> None:
    assert auroc(positive, negative) == pytest.approx(area)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))


def test_auroc_of_one_side() -> None:
    assert auroc([1.0], []) is None and auroc([], [1.0]) is None


def test_roc_goes_from_corner_to_corner() -> None:
    false, true = roc([0.9, 0.5, 0.5], [0.5, 0.1])
    assert false.tolist() == [0, 0, 0.5, 1]
    assert true.tolist() == [0, pytest.approx(1 / 3), 1, 1]


def test_answers_to_one_prompt_are_one_case() -> None:
    hits = [True, True, False] * 10
    together, apart = share(hits, repeats=3), share(hits)
    assert together and apart and together.value == apart.value == pytest.approx(2 / 3)
    assert (together.n, apart.n) == (10, 30) and together.high - together.low > apart.high - apart.low
    assert share([], repeats=3) is None
    more = excess([True, False] * 5, [False, False] * 5, repeats=2)
    assert more and (more.value, more.low, more.high, more.n) == (0.5, 0.5, 0.5, 5)
