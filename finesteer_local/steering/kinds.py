"""What kind of request a prompt is: a head beside a contrastive gate, and what is done about each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.steering.gate import ContrastiveGate

Array = NDArray[np.float32]

LEAVE, REPORT, STEER, REFUSE = "leave", "report", "steer", "refuse"
ACTIONS = (LEAVE, REPORT, STEER, REFUSE)
"""What is done about a request that opens the gate, ascending: nothing, and it does not count as flagged; nothing, but
it is told; the answer is steered; the profile's own words are the answer, at once."""
LIKELY = 0.5
"""From this probability on a kind counts beside the likeliest one."""
STOCK_WORDS = ("Sorry, I can't help with that.",)

Probabilities = tuple[tuple[str, float], ...]
"""(kind, probability), likeliest first."""


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    Attributes:
        name: lower-case letters, digits and `_`.
        about: what it is, for people.
        words: answers where it is to be refused at once, at least one.
        action: what is done about it where nobody says otherwise, one of `ACTIONS`.
        expert: the name of the expert that answers requests of this kind, where experts go by kinds
            (`Experts.by_kind`).
        alone: from this probability on it is reported or refused even where the gate stays shut, for kinds of which
            none may be missed; 0: never.
        mlcommons, openai: the hazard categories of MLCommons' AILuminate and the moderation categories of OpenAI's API
            that it belongs to.
    """

    name: str
    about: str = ""
    words: tuple[str, ...] = STOCK_WORDS
    action: str = STEER
    expert: str = ""
    alone: float = 0.0
    mlcommons: tuple[str, ...] = ()
    openai: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Kinds:
    """Which of several kinds of request a prompt is; more than one may hold.

    Where `z_t` are the gate's standardised states, T the tokens in which the gate finds most and `s` its score:

        x   = sum_{t in T} w_t z_t,  w_t the mean of softmax_T(q_k'z_t) over the gate's heads
        y   = max(0, V'x + c), or x without a hidden layer
        p_j = sigmoid(slope s + offset) sigmoid(a_j'y + b_j)

    The first factor is how likely the request needs intervention at all, the second how likely such a one is of kind j.
    """

    kinds: tuple[Kind, ...]  # C of them
    weight: Array  # a, (H, C); H is n_embd without a hidden layer
    bias: Array  # b, (C,)
    slope: float
    offset: float
    hidden_weight: Array | None = None  # V, (n_embd, H)
    hidden_bias: Array | None = None  # c, (H,)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(kind.name for kind in self.kinds)

    def get(self, name: str) -> Kind:
        """The kind of this name; raises `KeyError`."""
        return {kind.name: kind for kind in self.kinds}[name]

    def noticed(self, probabilities: Probabilities) -> str | None:
        """The likeliest kind that is acted upon although the gate stays shut, if any."""
        alone = {kind.name: kind.alone for kind in self.kinds if kind.alone > 0}
        return next((name for name, p in probabilities if name in alone and p >= alone[name]), None)

    def actions(self, policy: Mapping[str, str]) -> dict[str, str]:
        """What is done about each kind: what `policy` says, else the kind's own action."""
        return {kind.name: policy.get(kind.name, kind.action) for kind in self.kinds}

    def shares(self, probabilities: Probabilities) -> dict[str, float]:
        """How much of the kinds' probability each expert has; they need not add up to 1."""
        found: dict[str, float] = {}
        for name, p in probabilities:
            expert = self.get(name).expert
            found[expert] = found.get(expert, 0.0) + p
        return found

    def summary(self, gate: ContrastiveGate, states: Array) -> Array:
        """What is kept of hidden states (n, n_embd) beside the gate's own summary: one row a token, (n, n_embd).

        All of them, since where the gate finds most is known when the turn has been read.
        """
        return gate.standardised(states)

    def logits(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """`a_j'y + b_j` of attended states (.., n_embd): (.., C)."""
        y = np.asarray(x, np.float64)
        if self.hidden_weight is not None and self.hidden_bias is not None:
            y = np.maximum(y @ self.hidden_weight + self.hidden_bias, 0.0)
        return np.asarray(y @ self.weight + self.bias, np.float64)

    def probabilities(self, gate: ContrastiveGate, gate_summary: Array, summary: Array, score: float) -> Probabilities:
        """How likely each kind is, likeliest first.

        Args:
            gate_summary, summary: the gate's and this head's own of all tokens of the turn, one row a token.
            score: the gate's.
        """
        start, stop, weights = gate.attention(gate_summary)
        needed = sigmoid(np.float64(self.slope * score + self.offset))
        found = needed * sigmoid(self.logits(weights @ summary[start:stop]))
        return tuple((self.kinds[i].name, float(found[i])) for i in np.argsort(-found, kind="stable"))


def sigmoid(x: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """`1 / (1 + exp(-x))`, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def likely(probabilities: Probabilities) -> tuple[str, ...]:
    """The kinds that a request counts as: the likeliest one, and others from `LIKELY` on."""
    return tuple(name for i, (name, p) in enumerate(probabilities) if i == 0 or p >= LIKELY)


def action(probabilities: Probabilities, actions: Mapping[str, str]) -> tuple[str, str]:
    """What is done about a request that opened the gate, and the kind that asks for it.

    The strictest action of the kinds that it counts as, each of which is in `actions`; `STEER` where it counts as none.
    """
    named = likely(probabilities)
    if not named:
        return STEER, ""
    kind = max(named, key=lambda name: ACTIONS.index(actions[name]))  # the likeliest of several
    return actions[kind], kind
