"""The decision for one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError
from finesteer_local.steering.answer_gate import AnswerReading
from finesteer_local.steering.experts import Experts
from finesteer_local.steering.gate import ContrastiveGate, Gate
from finesteer_local.steering.kinds import LEAVE, REFUSE, REPORT, STEER, Kinds, Probabilities, action, likely

Array = NDArray[np.float32]

SHORT_PROMPT = 64
"""Steered tokens of a prompt, up to which it gets all of a profile's strength."""
LONG_PROMPT = 512
"""From here on it gets no less: longer ones are not tried in training, and padding shall not switch steering off."""


@dataclass(frozen=True, eq=False)
class Decision:
    """Whether and how one prompt is steered by one profile."""

    profile: str
    g: float  # the gate's value, 0 (closed) to 1
    score: float  # what the gate compared with its threshold
    threshold: float
    strength: float  # of this prompt: a long one may get less than the profile's own
    scope: str
    alpha: Mapping[int, Array] = field(default_factory=dict)  # layer -> weights of the experts, (K,), if they differ
    beta: Mapping[int, Array] = field(default_factory=dict)  # layer -> residual coefficients, (r,)
    vectors: Mapping[int, Array] = field(default_factory=dict)  # layer -> strength * g * v(h), (n_embd,)
    labels: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # layer -> the experts' names
    answer_strength: float = 1.0  # factor on `vectors` for the answer's tokens, 0 to 1
    length_factor: float = 1.0  # what of the strength is left at this prompt's length
    kinds: Probabilities = ()  # (kind of request, probability), likeliest first; nothing where the profile has no kinds
    action: str | None = None  # what is done (`kinds.ACTIONS`); None while the gate is closed, but see `Kind.alone`
    words: str = ""  # the answer, where it is `REFUSE`
    answer: AnswerReading | None = None  # what the gate on the answer has found; None where it is not watched

    @property
    def flagged(self) -> bool:
        """Whether the request counts as one that needs intervention."""
        return self.action is not None and self.action != LEAVE

    @property
    def refused(self) -> bool:
        """Whether the profile's own words are the answer, and nothing is generated."""
        return self.action == REFUSE

    @property
    def likely_kinds(self) -> tuple[str, ...]:
        """The kinds that the request counts as, where anything is done about it."""
        return likely(self.kinds) if self.action is not None else ()

    @property
    def open(self) -> bool:
        """Whether anything is added to the hidden states."""
        return bool(self.vectors)

    @property
    def answer_vectors(self) -> dict[int, Array]:
        """What the answer's tokens get, by layer: `answer_strength * vectors`; nothing where that is 0."""
        factor = np.float32(self.answer_strength)
        return {layer: factor * vector for layer, vector in self.vectors.items()} if factor else {}

    def leading_experts(self, n: int = 3) -> list[tuple[str, float]]:
        """The `n` experts with the greatest weight, averaged over the layers: (name, weight), heaviest first.

        Empty where the router learnt to tell no prompt from another: equal shares for everybody say nothing.
        """
        totals: dict[str, float] = {}
        for layer, alpha in self.alpha.items():
            names = self.labels.get(layer) or tuple(f"expert {i + 1}" for i in range(len(alpha)))
            for name, weight in zip(names, alpha, strict=True):
                totals[name] = totals.get(name, 0.0) + float(weight) / len(self.alpha)
        return sorted(totals.items(), key=lambda item: -item[1])[:n]


def length_factor(n_tokens: int, length_decay: float) -> float:
    """`(SHORT_PROMPT / n)^length_decay`, n from SHORT_PROMPT to LONG_PROMPT: the share of the strength for n tokens.

    Every steered token goes on steering what is read after it, so the same vector does more in a longer prompt
    (docs/experiments.md has the measurements).
    """
    return float((SHORT_PROMPT / min(max(n_tokens, SHORT_PROMPT), LONG_PROMPT)) ** length_decay)


def decide(
    profile: str,
    gate: Gate,
    experts: Mapping[int, Experts],
    h: Array,
    summary: Array,
    *,
    strength: float,
    scope: str,
    answer_strength: float = 1.0,
    length_decay: float = 0.0,
    n_tokens: int = 1,
    kinds: Kinds | None = None,
    policy: Mapping[str, str] | None = None,
    held_open: bool = False,
) -> Decision:
    """`H <- H + strength * g(h) * v(h)`: everything on its right-hand side, for one prompt.

    Args:
        profile: the profile's name, for messages.
        gate: when to steer.
        experts: how to steer, by layer.
        h: hidden state of the prompt's last token at the gate's layer, shape (n_embd,), float32.
        summary: the gate's summary of the last user turn's hidden states, one row a token; that of `kinds` beside it.
        strength: lambda for a short prompt; 0 steers nothing.
        scope: which tokens are steered; carried along.
        answer_strength: factor on the vector for the answer's tokens; carried along.
        length_decay, n_tokens: how fast the strength falls with the prompt's tokens in scope; see `length_factor`.
        kinds: tells the kind of request, beside a contrastive gate.
        policy: what is done about each kind (`kinds.ACTIONS`), in place of the profile's own action.
        held_open: steer in full, whatever the gate says of the prompt, because its answer has shown what it is.

    Raises:
        SteeringError: `h`, the score or a vector is not finite. A profile never fails silently.
    """
    if not (np.isfinite(h).all() and np.isfinite(summary).all()):
        raise SteeringError(f"profile {profile!r}: the model's hidden state is not finite; the answer would be unsafe")
    n_columns = summary.shape[1] - (len(h) if kinds else 0)
    of_gate, of_kinds = summary[:, :n_columns], summary[:, n_columns:]
    score = gate.score(h, of_gate)
    if not np.isfinite(score):
        raise SteeringError(f"profile {profile!r}: the gate's score is not finite; the profile is damaged")
    g = 1.0 if held_open else gate.value(score)
    factor = length_factor(n_tokens, length_decay)
    found: Probabilities = ()
    done: str | None = None if g == 0.0 else STEER
    kind = ""
    if kinds is not None and isinstance(gate, ContrastiveGate):
        found = kinds.probabilities(gate, of_gate, of_kinds, score)
        actions = kinds.actions(policy or {})
        if g > 0.0 and not held_open:
            done, kind = action(found, actions)
        elif not held_open and (noticed := kinds.noticed(found)) and actions[noticed] in (REPORT, REFUSE):
            done, kind = actions[noticed], noticed
    if done == STEER and strength == 0.0:
        done = REPORT
    decision = Decision(
        profile,
        g,
        score,
        gate.threshold,
        strength * factor,
        scope,
        answer_strength=answer_strength,
        length_factor=factor,
        kinds=found,
        action=done,
        words=_words(kinds.get(kind).words, n_tokens) if kinds and done == REFUSE else "",
    )
    if done != STEER:
        return decision
    shares = kinds.shares(found) if kinds else None
    alpha = {layer: e.alpha(h, shares) for layer, e in experts.items()}
    beta = {layer: e.beta(h) for layer, e in experts.items()}
    scale = np.float32(decision.strength * g)
    vectors = {layer: scale * e.mix(alpha[layer], beta[layer]) for layer, e in experts.items()}
    alpha = {layer: weights for layer, weights in alpha.items() if experts[layer].distinguishes}
    for layer, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise SteeringError(f"profile {profile!r}: layer {layer}'s vector is not finite; the profile is damaged")
    labels = {layer: experts[layer].labels for layer in alpha if experts[layer].labels}
    return replace(decision, alpha=alpha, beta=beta, vectors=vectors, labels=labels)


def _words(words: Sequence[str], n_tokens: int) -> str:
    """One of several: the same request gets the same, and the next one in a conversation most likely another."""
    return words[n_tokens % len(words)]
