"""Judges whether an answer is language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finesteer_local.judges.whole import windows
from finesteer_local.runtime.trainable import TrainableModel

MAX_REPEATED = 0.3
REPEATED_RANGE = (0.2, 0.5)
"""The limit for repetition lies between these, however much the unsteered model repeats itself."""

_WORD = re.compile(r"\w+(?:['’.,]\w+)*|[^\w\s]")

WINDOW_TOKENS = 32
"""The surprise of an answer is read over windows of so many tokens, which overlap by half."""


def repeated_share(answer: str, n: int = 3) -> float:
    """Share of the answer's n-grams of words and marks that stood in it before; 0 for short answers.

    Marks part words: what falls apart is often joined by them ("build-build-dis-build-build").
    """
    words = _WORD.findall(answer)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def surprises(llama: TrainableModel, answers: Sequence[str]) -> list[float]:
    """Mean negative log-probability (nats a token) of each answer as plain text, under the active profiles.

    The first token does not count unless it is the only one: nothing before it says what kind of text begins, and a
    short answer, as a good refusal often is, would be judged by that alone. An empty answer is infinitely surprising.
    """
    return [float(each.mean()) if len(each) else float("inf") for each in _token_surprises(llama, answers)]


def _token_surprises(llama: TrainableModel, answers: Sequence[str]) -> list[NDArray[np.float64]]:
    """Negative log-probability of each token of each answer but the first, (n,); empty for an empty answer."""
    tokens = [llama.tokenize(answer.encode(), add_bos=False, special=False) for answer in answers]
    tokens = [each[: llama.n_ctx() - 1] for each in tokens]  # an answer that was read anew may have more of them
    spoken = [i for i, each in enumerate(tokens) if each]
    results = [np.empty(0)] * len(answers)
    start = [max(llama.token_bos(), 0)]  # read once for all of them
    for i, logprobs in zip(spoken, llama.answer_logprobs(start, [tokens[i] for i in spoken]), strict=True):
        results[i] = -logprobs[min(1, len(logprobs) - 1) :]
    return results


def _worst_mean(values: NDArray[np.float64]) -> float:
    """The greatest mean over WINDOW_TOKENS values in a row; of fewer values the mean, of none infinity."""
    if not len(values):
        return float("inf")
    n = min(WINDOW_TOKENS, len(values))
    starts = [*range(0, len(values) - n, WINDOW_TOKENS // 2), len(values) - n]
    return max(float(values[start : start + n].mean()) for start in starts)


@dataclass(frozen=True)
class Fluency:
    """What tells whether an answer is language."""

    surprise: float  # nats a token; infinite for an empty answer
    repeated: float  # share of its trigrams that stood in it before

    @classmethod
    def of(cls, llama: TrainableModel, answers: Sequence[str]) -> list[Fluency]:
        """Read answers; the active profiles must be none."""
        spoken = [answer if answer.strip() else "" for answer in answers]
        return [
            cls(surprise, repeated_share(each)) for surprise, each in zip(surprises(llama, spoken), spoken, strict=True)
        ]

    @classmethod
    def throughout(cls, llama: TrainableModel, answers: Sequence[str]) -> list[Fluency]:
        """As `of`, but of each answer its worst window: a good beginning cannot hide a bad end.

        Surprise is that of WINDOW_TOKENS tokens after all that comes before them; repetition is looked for within
        each of `whole.windows`. Limits for such readings come from such readings (`Coherence.of_unsteered`).
        """
        spoken = [answer if answer.strip() else "" for answer in answers]
        return [
            cls(_worst_mean(each), max(map(repeated_share, windows(answer))))
            for each, answer in zip(_token_surprises(llama, spoken), spoken, strict=True)
        ]


@dataclass(frozen=True)
class Coherence:
    """Whether an answer is language: not repetitive, and no more surprising than the model's own answers are."""

    limit: float  # nats a token
    repeated: float = MAX_REPEATED

    @classmethod
    def of_unsteered(cls, readings: Sequence[Fluency]) -> Coherence:
        """Take both limits from unsteered answers: what 95 % of them stay under, and a tolerance.

        A model that repeats itself anyway may do so steered, but never more than half of the time.
        """
        spoken = [reading for reading in readings if np.isfinite(reading.surprise)]
        repeated = _limit([reading.repeated for reading in spoken], MAX_REPEATED, tolerance=0.1)
        return cls(
            limit=_limit([reading.surprise for reading in spoken], float("inf"), tolerance=0.5),
            repeated=float(np.clip(repeated, *REPEATED_RANGE)),
        )

    def accepts(self, reading: Fluency) -> bool:
        """Whether an answer so read is language."""
        spoken = bool(np.isfinite(reading.surprise))
        return spoken and reading.surprise <= self.limit and reading.repeated <= self.repeated


def _limit(values: Sequence[float], otherwise: float, *, tolerance: float) -> float:
    return float(np.quantile(values, 0.95)) + tolerance if len(values) else otherwise
