"""Rates with confidence intervals, and how well scores tell two kinds of prompts apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = Sequence[float] | NDArray[np.floating[Any]]

_Z = 1.959964  # 95 %
_RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """A figure with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int


def share(hits: Sequence[bool], repeats: int = 1) -> Rate | None:
    """Share of hits, with Wilson's interval; None of nothing.

    Args:
        repeats: so many hits in a row are of one prompt. They resemble each other, so the interval is that of as many
            cases as there are prompts, which is cautious.
    """
    n = len(hits) // repeats
    if not n:
        return None
    p = float(np.mean(hits))
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Rate(p, max(float(centre - half), 0.0), min(float(centre + half), 1.0), n)


def mean(values: Sequence[float]) -> Rate | None:
    """Mean with a bootstrap interval (percentiles, seeded); None of nothing."""
    if not len(values):
        return None
    x = np.asarray(values, np.float64)
    picks = np.random.default_rng(0).integers(0, len(x), (_RESAMPLES, len(x)))
    low, high = np.quantile(x[picks].mean(axis=1), [0.025, 0.975])
    return Rate(float(x.mean()), float(low), float(high), len(x))


def excess(hits: Sequence[bool], without: Sequence[bool], repeats: int = 1) -> Rate | None:
    """How much more often something happens with steering than without, on the same prompts: the paired bootstrap.

    Args:
        repeats: as for `share`; prompts are drawn, each with all that is of it.
    """
    more = np.subtract(hits, without, dtype=np.float64).reshape(-1, repeats).mean(axis=1)
    return mean(more.tolist())


def roc(positive: Values, negative: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates as the threshold falls, from (0, 0) to (1, 1); ties move together."""
    scores = np.r_[positive, negative].astype(np.float64)
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.diff(scores[order]) != 0, True]  # the last of equal scores
    true, false = np.cumsum(labels[order])[last], np.cumsum(1 - labels[order])[last]
    return np.r_[0, false / max(len(negative), 1)], np.r_[0, true / max(len(positive), 1)]


def auroc(positive: Values, negative: Values) -> float | None:
    """Probability that a positive's score is above a negative's; None where a side is empty."""
    if not len(positive) or not len(negative):
        return None
    false, true = roc(positive, negative)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
