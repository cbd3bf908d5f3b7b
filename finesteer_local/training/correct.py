"""Takes corrections into a contrastive gate: the smallest change that puts them right.

A gate's score has a term that is linear in the prompt's last hidden state, `u'x_last`. Let `z = (x_last, 1)`, and `M`
the mean of `zz'` over prompts that the gate knows, of which those near the threshold weigh most: only they can end up
on its other side. Of all changes `d` of `(u, b)` that give every correction the score that it needs, the one that moves
the others' scores least (in the mean square, `d'Md`) is

    d = M^-1 Z' l,   l >= 0,   Z of the corrections

A hidden state has hundreds of dimensions in which a correction can differ from everything else, so that the others'
scores move by a small part of what the correction's does. How many decisions flip is counted on prompts that are not in
`M`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finesteer_local.steering import ContrastiveGate

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

CLEAR = 0.25
"""By so many log-odds a corrected prompt is on its side of the threshold: it is read alone or in a batch."""
MOST_FLIPPED = 0.01
"""Of the other prompts' decisions, so many may change."""
_RIDGE = 0.02
"""Of the mean square of a dimension, added to every one: a few thousand prompts do not show every direction."""
NEAR, _FAR = 1.0, 0.1
"""Log-odds around the threshold within which a prompt weighs in full, and what one weighs that is far from it."""
_SWEEPS, _TOLERANCE = 2000, 1e-9
_MISSED = 0.01  # log-odds by which a correction may fall short of what it needs


@dataclass(frozen=True)
class Corrected:
    """A gate with corrections taken in.

    Attributes:
        gate: the new one.
        taken: indices of the corrections that it gets right now; the others would have changed too much else.
        before, after: scores of all corrections, (n,).
        flipped: indices of the counted prompts whose decision is another one now.
        moved: root mean square of how far the counted prompts' scores moved, log-odds.
    """

    gate: ContrastiveGate
    taken: list[int]
    before: Floats
    after: Floats
    flipped: list[int]
    moved: float


def correct(
    gate: ContrastiveGate,
    known: Array,
    known_scores: Floats,
    counted: Array,
    counted_scores: Floats,
    states: Array,
    scores: Floats,
    should_open: Sequence[bool],
    *,
    most: float = MOST_FLIPPED,
) -> Corrected:
    """The gate with as many of the corrections as leave the others alone.

    Args:
        known, known_scores: last hidden states of prompts by which a change is measured, (n, n_embd), and the gate's
            scores of them, (n,).
        counted, counted_scores: last hidden states and the gate's scores of prompts that are not among these, whose
            decisions are counted.
        states, scores, should_open: the same of the corrections, and what should be done about each.
        most: share of the counted prompts whose decision may change.
    """
    x = _with_one(gate.standardised(states))
    weights = _FAR + (1 - _FAR) * np.exp(-0.5 * ((known_scores - gate.low) / NEAR) ** 2)
    inverse = _inverse(_with_one(gate.standardised(known)), weights)
    others = _with_one(gate.standardised(counted))
    sign = np.where(np.asarray(should_open, bool), 1.0, -1.0)
    goal = np.where(sign > 0, gate.high + CLEAR, gate.low - CLEAR)
    lacking = np.maximum(sign * (goal - scores), 0.0)
    opened = counted_scores > gate.low
    taken = list(range(len(x)))
    while True:
        change = _least(inverse, sign[taken, None] * x[taken], sign[taken] * (goal - scores)[taken])
        flipped = np.flatnonzero((counted_scores + others @ change > gate.low) != opened)
        # Corrections that contradict each other are not had by any change.
        missed = [i for i in taken if sign[i] * (scores[i] + x[i] @ change - goal[i]) < -_MISSED]
        if not taken or (len(flipped) <= most * len(others) and not missed):
            break
        # The dearest goes first: what it lacks, over how much room it has.
        cost = {i: lacking[i] ** 2 / max(float(x[i] @ inverse @ x[i]), 1e-12) for i in missed or taken}
        taken.remove(max(cost, key=lambda i: cost[i]))
    moved = others @ change
    return Corrected(
        gate=replace(
            gate,
            last_weight=np.asarray(gate.last_weight + change[:-1], np.float32),
            bias=gate.bias + float(change[-1]),
        ),
        taken=taken,
        before=scores,
        after=scores + x @ change,
        flipped=flipped.tolist(),
        moved=float(np.sqrt(np.mean(moved**2))) if len(moved) else 0.0,
    )


def _with_one(x: Array) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1).astype(np.float64)


def _inverse(x: Floats, weights: Floats) -> Floats:
    """The inverse of the weighted mean of `xx'`, with a ridge."""
    moment = (x * (weights / weights.sum())[:, None]).T @ x
    return np.linalg.inv(moment + _RIDGE * float(np.trace(moment)) / len(moment) * np.eye(len(moment)))


def _least(inverse: Floats, rows: Floats, lacking: Floats) -> Floats:
    """The `d` with the least `d'Md` under `rows d >= lacking`, by Hildreth's method, coordinate by coordinate."""
    spread = inverse @ rows.T  # (n + 1, m)
    gram = rows @ spread
    weights = np.zeros(len(rows))
    for _ in range(_SWEEPS):
        largest = 0.0
        for i in range(len(rows)):
            new = max(weights[i] + (lacking[i] - gram[i] @ weights) / max(gram[i, i], 1e-12), 0.0)
            largest = max(largest, abs(new - weights[i]) * gram[i, i])
            weights[i] = new
        if largest < _TOLERANCE:
            break
    return np.asarray(spread @ weights, np.float64)
