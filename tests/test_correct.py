"""Taking corrections into a gate: they are decided as they should be, and hardly anything else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from finesteer_local.steering import ContrastiveGate
from finesteer_local.training.correct import CLEAR, MOST_FLIPPED, Corrected, correct
from tiny import make_gate

N_EMBD, N = 96, 1500


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def gate(rng: np.random.Generator) -> ContrastiveGate:
    made = make_gate("selective", N_EMBD, rng)
    assert isinstance(made, ContrastiveGate)
    return replace(made, low=1.0, high=1.25, last_weight=made.last_weight / 8)


def states(n: int, rng: np.random.Generator) -> np.ndarray:
    """Of dimensions that go together, as in a real residual stream."""
    mixed = np.random.default_rng(7).standard_normal((N_EMBD, N_EMBD)) / 10 + np.eye(N_EMBD)
    return (rng.standard_normal((n, N_EMBD)) @ mixed).astype(np.float32)


def taken_in(
    gate: ContrastiveGate, rng: np.random.Generator, x: np.ndarray, scores: np.ndarray, opens: Sequence[bool]
) -> Corrected:
    """Corrections with the last states `x`, beside others of which few are near the threshold."""
    known, counted = ((states(N, rng), rng.normal(gate.low - 6, 4, N)) for _ in range(2))
    return correct(gate, *known, *counted, x, scores, opens)


def corrected(gate: ContrastiveGate, rng: np.random.Generator, n: int, lack: float) -> Corrected:
    """Corrections that are all on the wrong side of the threshold, by `lack`; every second one should open."""
    opens = [i % 2 == 0 for i in range(n)]
    scores = np.where(opens, gate.low - lack, gate.low + lack)
    return taken_in(gate, rng, states(n, rng), scores, opens)


@pytest.mark.parametrize(("n", "lack"), [(1, 2.0), (4, 0.5), (10, 0.3)])
def test_corrections_are_decided_as_they_should_be_and_others_as_before(
    gate: ContrastiveGate, rng: np.random.Generator, n: int, lack: float
) -> None:
    found = corrected(gate, rng, n, lack)
    assert found.taken == list(range(n))
    for i in range(n):
        wanted = found.after[i] >= gate.high + CLEAR - 1e-6 if i % 2 == 0 else found.after[i] <= gate.low - CLEAR + 1e-6
        assert wanted, (i, found.after)
    assert len(found.flipped) <= MOST_FLIPPED * N
    assert 0 < found.moved < 0.6


def test_the_scores_are_the_new_gates_own(gate: ContrastiveGate, rng: np.random.Generator) -> None:
    turn = states(9, rng)
    before = gate.score(turn[-1], gate.summary(turn))
    found = taken_in(gate, rng, turn[-1:], np.array([before]), [before <= gate.low])
    assert found.gate.score(turn[-1], found.gate.summary(turn)) == pytest.approx(found.after[0], abs=1e-3)
    assert not found.taken or (found.gate.value(float(found.after[0])) > 0) == (before <= gate.low)


def test_what_is_right_already_changes_nothing(gate: ContrastiveGate, rng: np.random.Generator) -> None:
    found = taken_in(gate, rng, states(2, rng), np.array([5.0, -5.0]), [True, False])
    assert np.array_equal(found.gate.last_weight, gate.last_weight) and found.gate.bias == gate.bias
    assert not found.flipped and found.taken == [0, 1]


def test_one_that_would_change_too_much_is_left_out(gate: ContrastiveGate, rng: np.random.Generator) -> None:
    """The dearest goes first, the others stay."""
    scores = np.array([gate.low - 1.0, gate.low - 80.0])
    found = taken_in(gate, rng, states(2, rng), scores, [True, True])
    assert found.taken == [0] and found.after[0] > gate.high and len(found.flipped) <= MOST_FLIPPED * N


def test_what_contradicts_itself_is_not_taken(gate: ContrastiveGate, rng: np.random.Generator) -> None:
    same = np.repeat(states(1, rng), 2, axis=0)
    found = taken_in(gate, rng, same, np.array([gate.low, gate.low]), [True, False])
    assert len(found.taken) <= 1 and len(found.flipped) <= MOST_FLIPPED * N
    assert np.isfinite(found.after).all()


def test_no_other_change_moves_the_others_less(gate: ContrastiveGate, rng: np.random.Generator) -> None:
    """All are as near to the threshold as each other, and so weigh alike."""
    known, x, scores = states(N, rng), states(1, rng), np.full(N, gate.low - 9)
    found = correct(gate, known, scores, known, scores, x, np.array([gate.low - 2]), [True])
    change = np.append(found.gate.last_weight - gate.last_weight, found.gate.bias - gate.bias)
    z, own = (np.c_[gate.standardised(each), np.ones(len(each))] for each in (known, x))
    least = np.sqrt(np.mean((z @ change) ** 2))
    for _ in range(20):
        other = change + 0.05 * np.linalg.norm(change) * rng.standard_normal(len(change)) / np.sqrt(len(change))
        other *= (own @ change)[0] / (own @ other)[0]  # gives the correction as much
        assert np.sqrt(np.mean((z @ other) ** 2)) > least * 0.99
