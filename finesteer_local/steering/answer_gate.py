"""A second gate, which reads the answer while the model writes it: a dot product a token, one running mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError

Array = NDArray[np.float32]

OFF, REPORT, STEER, REWIND, STOP = "off", "report", "steer", "rewind", "stop"
ON_ANSWER = (REPORT, STEER, REWIND, STOP)
"""What is done once the gate opens, ascending: it is only told; the rest of the answer is steered; so it is, after what
shows the harm was taken back; the answer ends. `OFF` reads nothing."""


@dataclass(frozen=True, eq=False)
class AnswerGate:
    """When an answer shows what its prompt hid.

    Of the answer's tokens 1, 2, .. every `every`-th is read: `x_t = w'h_t + b` with its hidden state `h_t`, in
    log-odds. What counts is the running mean of these,

        m_t = d m_{t - every} + (1 - d) x_t,   d = decay^every,   s_t = m_t / (1 - d^(readings so far))

    which starts at the first reading (Adam's correction, arXiv 1412.6980). The gate opens at the first token t that
    is read, `t >= first`, where `s_t > threshold`.

    Attributes:
        layer: whose hidden states are read (llama.cpp's `l_out-N`); not the last one.
        weight, bias: w, (n_embd,), and b; standardisation is folded in.
        decay: of the running mean, by token of the answer, 0 (the last reading alone) to below 1.
        threshold: in log-odds.
        first: tokens of the answer before which it never opens, at least 1.
        every: tokens from one reading to the next, at least 1.
        action: what is done where nobody says otherwise, one of `ON_ANSWER`.
    """

    layer: int
    weight: Array
    bias: float
    decay: float
    threshold: float
    first: int
    every: int = 1
    action: str = REWIND

    @property
    def look_ahead(self) -> int:
        """Tokens that have to be written after one before what it says can have opened the gate, at the least."""
        return max(self.first, self.every)

    def start(self) -> AnswerWatch:
        """The gate at the beginning of an answer."""
        return AnswerWatch(self)

    def scores(self, states: Array) -> Array:
        """`s_t` of a whole answer's hidden states (n, n_embd), for each token that is read: (n // every,)."""
        watch = self.start()
        for h in states:
            watch.read(h) if watch.due else watch.pass_by()
        return np.array(watch.scores, np.float32)


@dataclass(frozen=True)
class AnswerReading:
    """What a gate on an answer has found so far.

    Attributes:
        action: what is done once it opens, or was done.
        score: the running mean, that of the opening once it is open, and of an answer that was read to its end the
            highest (`AnswerWatch.highest`); None before the first reading.
        opened_at: the tokens that the answer had, thoughts included, when the gate opened; None while it is shut.
        taken_back: how many of these were taken back.
    """

    action: str
    threshold: float
    score: float | None = None
    opened_at: int | None = None
    taken_back: int = 0


def highest(scores: Sequence[float] | Array, first: int) -> float:
    """The greatest running mean of those with which a gate could open, from reading `first` on; of a shorter answer the
    last one, and of one without readings -inf."""
    could = scores[first - 1 :] if len(scores) >= first else scores[-1:]
    return float(np.max(could)) if len(could) else -np.inf


class AnswerWatch:
    """An `AnswerGate` along one answer.

    Attributes:
        n_tokens: tokens of the answer that came by, read or not.
        scores: the running mean after each reading.
        opened_at: the first tokens of the answer after which the gate was open, counted from 1; None before.
    """

    def __init__(self, gate: AnswerGate) -> None:
        self.gate = gate
        self.n_tokens = 0
        self.scores: list[float] = []
        self._means: list[float] = []  # before the correction
        self.opened_at: int | None = None

    @property
    def due(self) -> bool:
        """Whether the answer's next token is to be read."""
        return (self.n_tokens + 1) % self.gate.every == 0

    @property
    def score(self) -> float | None:
        """The running mean; None before the first reading."""
        return self.scores[-1] if self.scores else None

    @property
    def highest(self) -> float | None:
        """As `highest`; None before the first reading."""
        first = -(-self.gate.first // self.gate.every)
        return highest(self.scores, first) if self.scores else None

    def pass_by(self) -> None:
        """A token that is not read."""
        self.n_tokens += 1

    def read(self, h: Array) -> float:
        """The next token, with its hidden state (n_embd,); returns the running mean.

        Raises:
            SteeringError: the state is not finite.
        """
        # Not `h @ weight`, which BLAS may round by where the array lies: the same answer gets the same score.
        x = float(np.einsum("d,d->", h, self.gate.weight)) + self.gate.bias
        if not (np.isfinite(x) and np.isfinite(h).all()):
            raise SteeringError("the hidden state of a token of the answer is not finite; the answer would be unsafe")
        decay = self.gate.decay**self.gate.every
        mean = decay * (self._means[-1] if self._means else 0.0) + (1 - decay) * x
        self.n_tokens += 1
        self._means.append(mean)
        self.scores.append(mean / (1 - decay ** len(self._means)))
        if self.opened_at is None and self.n_tokens >= self.gate.first and self.scores[-1] > self.gate.threshold:
            self.opened_at = self.n_tokens
        return self.scores[-1]

    @property
    def began(self) -> int:
        """How many tokens came before the harm began to show: before the stretch of readings, up to the opening or
        the last one, whose means are all above half the threshold."""
        level = min(self.gate.threshold, self.gate.threshold / 2)
        n_read = (self.n_tokens if self.opened_at is None else self.opened_at) // self.gate.every
        while n_read > 0 and self.scores[n_read - 1] > level:
            n_read -= 1
        return n_read * self.gate.every

    def cut(self, n_tokens: int) -> None:
        """Forget all tokens but the first `n_tokens`."""
        if n_tokens >= self.n_tokens:
            return
        self.n_tokens = n_tokens
        del self._means[n_tokens // self.gate.every :], self.scores[n_tokens // self.gate.every :]
        if self.opened_at is not None and self.opened_at > n_tokens:
            self.opened_at = None
