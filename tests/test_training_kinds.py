"""Training the kinds: planted ones are told, families and requests are held out whole, probabilities are calibrated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finesteer_local.steering import ContrastiveGate, Kind
from finesteer_local.training import kinds as module
from finesteer_local.training.data import WRAPPED, KindOf, Prompt
from finesteer_local.training.gates import fit_contrastive_gate, log_odds
from finesteer_local.training.kinds import FOLDS, LEAST, fit_kinds
from finesteer_local.training.model_data import Turns
from test_training_gates import N_EMBD, ROW, SIGNAL, noise, turns

TABLE = [KindOf(Kind(name), (f"{name}_a", f"{name}_b")) for name in ("fraud", "hate", "drugs")]


pytestmark = pytest.mark.usefixtures("one_thread")


def prompt(text: str, kind: str, **more: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}], kind, **more)


def planted(n: int, seed: int = 0) -> tuple[Turns, list[Prompt], list[int]]:
    """The signal that needs intervention at one token of each turn, and beside it that of the kind."""
    rng = np.random.default_rng(seed)
    states, prompts, of = noise(n, rng), [], []
    for i, turn in enumerate(states):
        of.append(int(rng.integers(3)))
        turn[rng.integers(0, len(turn))] += 8 * SIGNAL + 6 * ROW[1 + of[-1]]
        prompts.append(prompt(f"prompt {seed} {i}", f"{TABLE[of[-1]].kind.name}_{'ab'[i % 2]}"))
    return turns(states), prompts, of


@pytest.fixture(scope="module")
def gate(one_thread: None) -> ContrastiveGate:
    rng = np.random.default_rng(7)
    return fit_contrastive_gate(planted(240)[0], turns(noise(300, rng)), seed=0)[0]


def test_planted_kinds_are_told(gate: ContrastiveGate) -> None:
    states, prompts, _ = planted(600)
    found = fit_kinds(gate, states, prompts, TABLE, slope=2.0, offset=-1.0)
    assert found is not None
    kinds, fit = found
    assert kinds.names == ("fraud", "hate", "drugs") and (kinds.slope, kinds.offset) == (2.0, -1.0)
    assert fit.first > 0.8 and fit.among_two >= fit.first and fit.calibration < 0.1
    assert set(fit.kinds) == set(kinds.names) and fit.forms == {"plain": fit.first}
    fresh, _, of = planted(200, seed=1)
    hits = []
    for i, kind in enumerate(of):
        summary = gate.summary(fresh[i])
        named = kinds.probabilities(gate, summary, kinds.summary(gate, fresh[i]), gate.score(fresh[i][-1], summary))
        hits.append(named[0][0] == kinds.names[kind])
    assert np.mean(hits) > 0.8


def test_the_same_data_gives_the_same_head(gate: ContrastiveGate) -> None:
    states, prompts, _ = planted(200)
    one, two = (fit_kinds(gate, states, prompts, TABLE, slope=1.0, offset=0.0) for _ in range(2))
    assert one is not None and two is not None
    np.testing.assert_array_equal(one[0].weight, two[0].weight)


def test_several_kinds_may_hold(gate: ContrastiveGate) -> None:
    states, prompts, _ = planted(400)
    table = [*TABLE, KindOf(Kind("money"), ("fraud_a", "fraud_b", "drugs_a", "drugs_b"))]
    found = fit_kinds(gate, states, prompts, table, slope=0.0, offset=20.0)
    assert found is not None
    kinds = found[0]
    both = [
        {name for name, p in kinds.probabilities(gate, gate.summary(x), kinds.summary(gate, x), 0.0) if p > 0.5}
        for x in (states[i] for i in range(len(states)))
    ]
    assert sum({"money", "fraud"} <= named for named in both) > 60


def test_too_few_prompts(gate: ContrastiveGate) -> None:
    states, prompts, of = planted(120)
    rare = [
        replace(p, kind="other") if k == 2 and i > LEAST else p
        for i, (p, k) in enumerate(zip(prompts, of, strict=True))
    ]
    found = fit_kinds(gate, states, rare, TABLE, slope=1.0, offset=0.0)
    assert found is not None and found[0].names == ("fraud", "hate")
    alone = [replace(p, kind="fraud_a") for p in prompts]
    assert fit_kinds(gate, states, alone, TABLE, slope=1.0, offset=0.0) is None
    assert fit_kinds(gate, states, prompts, TABLE[:1], slope=1.0, offset=0.0) is None


def test_neither_families_nor_requests_are_in_two_folds(gate: ContrastiveGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fold's head learns from shares no family and no request with what they are tried on."""
    states, prompts, _ = planted(300)
    prompts = [
        replace(p, family=f"family {i % 12}", form=WRAPPED, request=f"asks {i % 40}")
        if i % 2
        else replace(p, request="")
        for i, p in enumerate(prompts)
    ]
    learnt: list[np.ndarray] = []
    real = module._Network

    def watched(x: np.ndarray, belongs: np.ndarray, seed: int) -> module._Network:
        learnt.append(x)
        return real(x, belongs, seed)

    monkeypatch.setattr(module, "_Network", watched)
    monkeypatch.setattr(watched, "learn", real.learn, raising=False)
    assert fit_kinds(gate, states, prompts, TABLE, slope=1.0, offset=0.0) is not None
    attended = module._attended(gate, states, range(len(prompts)))
    rows = {row.tobytes(): prompt for row, prompt in zip(attended, prompts, strict=True)}
    assert len(learnt) == FOLDS + 1 and len(learnt[-1]) == len(prompts)
    for fold, x in enumerate(learnt[:-1]):
        seen = [rows[row.tobytes()] for row in x]
        out = [p for p in prompts if module._folds(p) == (fold, fold)]
        assert out and not {p.family for p in seen if p.family} & {p.family for p in out if p.family}
        assert not {p.request or p.text for p in seen} & {p.request or p.text for p in out}


def test_what_is_attended_to(gate: ContrastiveGate) -> None:
    """Turns together give what each gives alone, as the running gate has it."""
    rng = np.random.default_rng(3)
    of = turns([*noise(70, rng), *noise(4, rng, longest=150)])
    rows = [5, *range(8, 74)]
    found = module._attended(gate, of, rows)
    assert found.shape == (len(rows), N_EMBD) and found.dtype == np.float32
    for got, row in zip(found, rows, strict=True):
        start, stop, weights = gate.attention(gate.summary(of[row]))
        np.testing.assert_allclose(got, weights @ gate.standardised(of[row][start:stop]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_precision_tells_the_same(
    gate: ContrastiveGate, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fast_dtype", lambda: dtype)
    states, prompts, _ = planted(400)
    found, done = [], []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        found.append(
            fit_kinds(
                gate, states, prompts, TABLE, slope=1.0, offset=0.0, progress=lambda n, total: done.append((n, total))
            )
        )
    torch.set_num_threads(1)
    one, two = found
    assert one is not None and two is not None
    assert one[1].first > 0.8 and done == [(n, FOLDS + 1) for n in range(1, FOLDS + 2)] * 2
    np.testing.assert_allclose(one[0].weight, two[0].weight, rtol=1e-3, atol=1e-4)


def test_log_odds() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=4000).astype(np.float32)
    labels = (rng.uniform(size=4000) < 1 / (1 + np.exp(-(2 * scores - 1)))).astype(float)
    slope, offset = log_odds(scores, labels)
    assert slope == pytest.approx(2, abs=0.25) and offset == pytest.approx(-1, abs=0.2)
    assert log_odds(-scores, labels)[0] == 0.0  # a score that says the opposite says nothing
    assert len(SIGNAL) == N_EMBD
