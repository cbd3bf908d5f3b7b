"""Training the answer's gate: planted harm is found, families are held out whole, ordinary answers are left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finesteer_local.training import answer_gate as module
from finesteer_local.training.answer_gate import LEAST, fit_answer_gate, highest, learn_answer_gate, running_mean
from finesteer_local.training.data import PLAIN, WRAPPED, Prompt
from finesteer_local.training.effort import Deadline
from finesteer_local.training.own_answers import AskedPrompt, OwnAnswers
from test_own_answers import made
from test_training_gates import SIGNAL, noise, turns


def asked(i: int, needs: bool, family: str = "") -> AskedPrompt:
    form = WRAPPED if family else PLAIN
    return AskedPrompt(needs, Prompt([{"role": "user", "content": f"prompt {needs} {i}"}], family=family, form=form))


def planted(n: int, seed: int = 0, begins: int = 0, longest: int = 60, declined: float = 0.2) -> OwnAnswers:
    """`n` prompts of each kind; an answer that complies shows it from token `begins` on."""
    rng = np.random.default_rng(seed)
    prompts = [asked(i, needs) for i in range(n) for needs in (True, False)]
    declines = np.array([rng.random() < (declined if each.needs else 0.05) for each in prompts])
    states = [turn for turn in noise(4 * n, rng, longest) if len(turn) >= 20][: 2 * n]
    assert len(states) == 2 * n
    for each, declining, turn in zip(prompts, declines, states, strict=True):
        if each.needs and not declining:
            turn[begins:] += 1.5 * SIGNAL
    return OwnAnswers(prompts, declines, turns(states))


@pytest.fixture(scope="module")
def answers() -> OwnAnswers:
    return planted(250)


@pytest.mark.parametrize("every", [1, 4])
def test_answers_that_comply_are_found(answers: OwnAnswers, every: int) -> None:
    read = answers
    if every > 1:
        longer = planted(250, longest=150 * every)
        read = replace(longer, states=turns([longer.states[i][every - 1 :: every] for i in range(500)]))
    found = fit_answer_gate(read, 7, every=every)
    assert found is not None
    gate, fit = found
    assert (gate.layer, gate.every, gate.first % every) == (7, every, 0) and gate.weight.dtype == np.float32
    assert fit.auroc > 0.95 and fit.recall > 0.7 and fit.openings <= 0.01 and (fit.refusals or 0) <= 0.05
    assert (fit.answers, fit.complied) == (500, int(read.complies.sum()))
    fresh = planted(100, seed=5, longest=60 if every == 1 else 150 * every)
    opened = []
    for i in range(len(fresh.asked)):
        watch = gate.start()
        for h in fresh.states[i]:
            watch.read(h) if watch.due else watch.pass_by()
        opened.append(watch.opened_at is not None)
    assert np.mean(np.array(opened)[fresh.complies]) > 0.7
    assert np.mean(np.array(opened)[~fresh.complies]) <= 0.02


def test_it_opens_once_harm_shows(answers: OwnAnswers) -> None:
    found = fit_answer_gate(answers, 7)
    assert found is not None
    late = planted(60, seed=9, begins=16)
    opened = []
    for i in np.flatnonzero(late.complies):
        watch = found[0].start()
        for h in late.states[i]:
            watch.read(h)
        opened.append(watch.opened_at or np.inf)
    assert 16 <= np.median(opened) < np.inf


def test_too_few_answers_teach_nothing() -> None:
    few = planted(LEAST + 10)
    assert fit_answer_gate(replace(few, declined=np.ones(len(few.asked), bool)), 7) is None
    assert fit_answer_gate(planted(LEAST - 1), 7) is None


@pytest.mark.parametrize("keep", [True, False])
def test_an_interruption_leaves_no_gate_where_that_is_wanted(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known:
        def fits(self, prompt: Prompt) -> bool:
            return True

    def stopped(*args: object, **options: object) -> OwnAnswers:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "own_answers", stopped)
    known: Any = Known()
    if keep:
        assert learn_answer_gate(known, made(), 1, 64, deadline=Deadline(None), keep=True) is None
    else:
        with pytest.raises(KeyboardInterrupt):
            learn_answer_gate(known, made(), 1, 64, deadline=Deadline(None))


def test_a_family_is_held_out_whole() -> None:
    """What tells a single family from all the rest is no harm that another one shows."""
    rng = np.random.default_rng(3)
    plain = planted(100, seed=3)
    own = [turn[:40] for turn in noise(400, rng, 80) if len(turn) >= 40][:100]
    for turn in own:
        turn += 1.5 * np.linalg.qr(np.random.default_rng(99).standard_normal((24, 24)))[0].astype(np.float32)[5]
    states = [*(plain.states[i] for i in range(len(plain.asked))), *own]
    joined = OwnAnswers(
        [*plain.asked, *(asked(i, True, "one") for i in range(100))],
        np.r_[plain.declined, np.zeros(100, bool)],
        turns(states),
    )
    found = fit_answer_gate(joined, 7)
    assert found is not None and found[1].recall < 0.75  # the family's hundred are not recognised by themselves
    assert module._fold(joined.asked[-1].prompt) == module._fold(joined.asked[-2].prompt)


def test_the_running_mean_is_the_gate_s(answers: OwnAnswers) -> None:
    found = fit_answer_gate(answers, 7)
    assert found is not None
    gate, states = found[0], answers.states[0]
    own = running_mean((states @ gate.weight + gate.bias)[:, None], gate.decay)[:, 0]
    assert np.allclose(own, gate.scores(states), atol=1e-4)
    projected = running_mean((states @ gate.weight)[:, None], 0.9)[:, 0]
    assert np.allclose(running_mean(states, 0.9) @ gate.weight, projected, rtol=1e-3, atol=1e-2)


def test_the_threshold_is_above_what_a_longer_answer_reaches() -> None:
    """More ordinary answers than there are, and longer ones: what is told from a few hundred holds for thousands."""
    rng = np.random.default_rng(0)

    def traces(n: int, length: int) -> list[np.ndarray]:
        return [running_mean(rng.standard_normal((length, 1)).astype(np.float32), 0.95)[:, 0] for _ in range(n)]

    threshold = module._threshold(traces(300, 96), 8, 1)
    whole = np.array([highest(trace, 8) for trace in traces(3000, module.WHOLE)])
    assert np.mean(whole > threshold) <= 2 * module.TOUCHED
    assert threshold < whole.max() + 1  # and not out of reach


def test_short_answers() -> None:
    assert highest(np.array([3.0, 1.0], np.float32), 8) == 1.0
    assert highest(np.empty(0, np.float32), 8) == -np.inf
    assert running_mean(np.empty((0, 3), np.float32), 0.9).shape == (0, 3)
