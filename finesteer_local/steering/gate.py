"""When to steer: gates on the hidden state `h` of the prompt's last token, or on those of the whole last turn.

A gate gives `g` in [0, 1]: 0 leaves the model untouched, 1 steers in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Gate(Protocol):
    """What every kind of gate offers."""

    kind: ClassVar[str]

    @property
    def pools(self) -> bool:
        """Whether the gate reads every token of the last user turn, not only the prompt's last one."""

    @property
    def whole(self) -> bool:
        """Whether a gate that pools reads the whole prompt, not only its last user turn."""

    @property
    def threshold(self) -> float:
        """The score from which on `g` is above 0."""

    def summary(self, states: Array) -> Array:
        """What the gate keeps of hidden states (n, n_embd): one row a token, so that a turn can come in pieces."""

    def score(self, h: Array, summary: Array) -> float:
        """The quantity that is compared with the threshold.

        Args:
            h: hidden state of the prompt's last token, (n_embd,).
            summary: `summary` of all tokens of the turn, the last one included.
        """

    def value(self, score: float) -> float:
        """`g` in [0, 1] for a score."""


@dataclass(frozen=True, eq=False)
class SubspaceGate:
    """Subspace-guided conditional steering, SCS (FineSteer, arXiv 2604.15488).

    `s(h) = |V'(h - mu)|^2 / |h - mu|^2`, the share of energy inside the subspace of prompts that need intervention;
    `g = 1` where `F(s) >= eps`, else `(F(s) / eps)^gamma`, and 0 where that falls under `floor`. `F` is the empirical
    distribution of `s` on held-out prompts that need intervention.
    """

    kind: ClassVar[str] = "scs"
    pools: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    mean: Array  # mu, (n_embd,)
    basis: Array  # V, (n_embd, k), orthonormal columns
    calibration: Array  # s of the held-out prompts, ascending, (n,)
    eps: float = 0.05
    gamma: float = 2.0
    floor: float = 0.05

    @property
    def threshold(self) -> float:
        # the smallest s with F(s) >= eps; the tolerance keeps eps * n from rounding up past a whole number
        rank = max(int(np.ceil(self.eps * len(self.calibration) - 1e-9)), 1)
        return float(self.calibration[rank - 1])

    def summary(self, states: Array) -> Array:
        return states[:, :0]

    def score(self, h: Array, summary: Array) -> float:
        centred = h - self.mean
        energy = float(centred @ centred)
        inside = centred @ self.basis
        return float(inside @ inside) / energy if energy > 0 else 0.0

    def value(self, score: float) -> float:
        if score >= self.threshold:
            return 1.0
        mass = float(np.searchsorted(self.calibration, score, side="right")) / len(self.calibration)
        g = float((mass / self.eps) ** self.gamma)
        return g if g >= self.floor else 0.0


@dataclass(frozen=True, eq=False)
class ContrastiveGate:
    """An attention probe over the last user turn, trained against ordinary and borderline prompts.

    `p(T) = sum_k sum_{t in T} softmax_T(q_k'x_t) v_k'x_t` is what its heads make of the tokens T, where `x_t` is the
    standardised hidden state of token t, and `s = max_T p(T) + x_last'u + b` in log-odds: the greatest over the whole
    turn and, where that is longer than `window` tokens, over every stretch of so many (`spans`). A request can hide
    anywhere in a prompt: pooling with learned queries finds it where the last token alone does not, and among
    thousands of tokens, over which a softmax spreads, a stretch still holds it alone (docs/experiments.md has the
    measurements). `g` rises from 0 at `low` to 1 at `high`.
    """

    kind: ClassVar[str] = "contrastive"
    pools: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    clip: ClassVar[float] = 8.0
    """Standardised states are cut here: the first token of a text has a few activations a thousand times the rest."""

    mean: Array  # (n_embd,)
    scale: Array  # (n_embd,), positive
    query: Array  # q, (n_embd, K)
    value_weight: Array  # v, (n_embd, K)
    last_weight: Array  # u, (n_embd,)
    bias: float
    low: float
    high: float
    window: int = 0  # tokens; 0: only the whole turn counts

    @property
    def threshold(self) -> float:
        return self.low

    def standardised(self, states: Array) -> Array:
        """`z`, the shape of `states`."""
        return np.asarray(np.clip((states - self.mean) / self.scale, -self.clip, self.clip), np.float32)

    def summary(self, states: Array) -> Array:
        x = self.standardised(states)
        heads = np.concatenate([self.query, self.value_weight], axis=1)
        # Not `x @ heads`: BLAS rounds a row by how many others come with it, and a turn can come in pieces.
        kept: Array = np.einsum("nd,kd->nk", x, np.ascontiguousarray(heads.T))  # (n, 2K)
        kept[~np.isfinite(states).all(axis=1)] = np.nan  # the clip would hide an infinite state
        return kept

    def score(self, h: Array, summary: Array) -> float:
        # np.max keeps a NaN, which Python's max may drop
        pooled = np.max([self._pooled(summary[start:stop]) for start, stop in spans(len(summary), self.window)])
        return float(pooled + self.standardised(h) @ self.last_weight) + self.bias

    def _pooled(self, summary: Array) -> np.float32:
        values = summary[:, self.query.shape[1] :]
        weights = self._weights(summary)
        return np.float32(((weights * values).sum(axis=0) / weights.sum(axis=0)).sum())

    def _weights(self, summary: Array) -> Array:
        """The heads' attention to some tokens, (n, K), up to a factor a head."""
        logits = summary[:, : self.query.shape[1]]
        return np.asarray(np.exp(logits - logits.max(axis=0)), np.float32)

    def attention(self, summary: Array) -> tuple[int, int, Array]:
        """Where in a turn the gate finds most: the first token, the one behind the last, and the heads' mean attention
        to those between, sum 1."""
        found = spans(len(summary), self.window)
        start, stop = found[int(np.argmax([self._pooled(summary[start:stop]) for start, stop in found]))]
        weights = self._weights(summary[start:stop])
        return start, stop, np.asarray((weights / weights.sum(axis=0)).mean(axis=1), np.float32)

    def value(self, score: float) -> float:
        if score >= self.high:
            return 1.0
        return (score - self.low) / (self.high - self.low) if score > self.low else 0.0


def spans(n: int, window: int) -> list[tuple[int, int]]:
    """What a contrastive gate pools over in a turn of `n` tokens: all of it, then every stretch of `window` tokens.

    Stretches begin a quarter of their length apart, and the last one ends with the turn, so that whatever is no longer
    than three quarters of a stretch lies in one as a whole.
    """
    if not 0 < window < n:
        return [(0, n)]
    starts = [*range(0, n - window, max(window // 4, 1)), n - window]
    return [(0, n), *((start, start + window) for start in starts)]


@dataclass(frozen=True, eq=False)
class ConditionGate:
    """The condition of conditional activation steering, CAST (arXiv 2409.05907), as IBM's library computes it.

    `s = cos(x, tanh(c c'x / c'c))` for a condition vector `c`, with `x` the mean of the hidden states of the whole
    prompt or the last one alone; `g = 1` where `s` is above the limit (or below it, with a sign of -1), else 0.
    """

    kind: ClassVar[str] = "cast"

    direction: Array  # c, (n_embd,)
    limit: float
    sign: float  # 1: opens above the limit; -1: below
    over_prompt: float  # 1: x is the mean over the prompt's tokens; 0: the last token

    @property
    def pools(self) -> bool:
        return self.over_prompt > 0

    @property
    def whole(self) -> bool:
        return self.pools

    @property
    def threshold(self) -> float:
        return self.sign * self.limit

    def summary(self, states: Array) -> Array:
        return states if self.pools else states[:, :0]

    def score(self, h: Array, summary: Array) -> float:
        x = summary.mean(axis=0, dtype=np.float64) if self.pools else h.astype(np.float64)
        c = self.direction.astype(np.float64)
        y = np.tanh(c * (c @ x) / (c @ c))
        lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
        return self.sign * float(x @ y) / lengths if lengths > 0 else self.threshold

    def value(self, score: float) -> float:
        return 1.0 if score > self.threshold else 0.0


@dataclass(frozen=True, eq=False)
class AlwaysGate:
    """Open for every prompt: a plain control vector has no gate."""

    kind: ClassVar[str] = "always"
    pools: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    @property
    def threshold(self) -> float:
        return 0.0

    def summary(self, states: Array) -> Array:
        return states[:, :0]

    def score(self, h: Array, summary: Array) -> float:
        return 1.0

    def value(self, score: float) -> float:
        return 1.0
