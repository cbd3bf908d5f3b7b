"""Choosing settings and strengths by answers to validation prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.evaluation import method_tuner as module
from finesteer_local.evaluation.answers import EvalAnswer
from finesteer_local.evaluation.baselines.vectors import Candidate, always
from finesteer_local.evaluation.interventions import UNSTEERED, Reading
from finesteer_local.evaluation.journal import Journal
from finesteer_local.evaluation.method_tuner import (
    FIRST_STRENGTHS,
    GIVE_UP,
    PROMPTS,
    STRENGTHS,
    TOLERANCE,
    Trial,
    Tuner,
)
from finesteer_local.judges.fluency import Fluency
from finesteer_local.judges.whole import Verdict
from finesteer_local.training.data import TrainingData
from material import made_up
from reference import steered_llama
from tiny import write_tiny_model

Quality = Callable[[str, float], tuple[float, float, float]]
"""(candidate, strength) -> shares: positives refused, contrast prompts refused, answers that are mush."""


class Fake:
    """An intervention that is nothing but its name and strength."""

    def __init__(self, name: str, strength: float) -> None:
        self.name, self.strength, self.digest = name, strength, f"{name} {strength}"


def candidate(name: str) -> Candidate:
    return Candidate({"name": name}, lambda strength: Fake(name, strength))  # type: ignore[arg-type, return-value]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tuning") / "tiny.gguf", n_layer=12)


@pytest.fixture
def tuner(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Quality], Tuner]:
    """A tuner whose model answers as the quality says."""

    def make(quality: Quality) -> Tuner:
        def answer_all(
            llama: Any, intervention: Any, requests: Sequence[Any], journal: Any, **_: Any
        ) -> list[EvalAnswer]:
            positive = [r.messages[0]["content"].startswith("open") for r in requests]
            if intervention is UNSTEERED:
                texts = ["Sure."] * len(requests)
            else:
                refused, refused_contrast, mush = quality(intervention.name, intervention.strength)
                texts = [
                    ("I cannot." if _share(i, positive, p) < (refused if p else refused_contrast) else "Sure.")
                    + (" mush" if _share(i, positive, p) >= 1 - mush else "")
                    for i, p in enumerate(positive)
                ]
            return [EvalAnswer(text, "endless" not in text, 5, 0.0, 0.0, Reading()) for text in texts]

        monkeypatch.setattr(module, "answer_all", answer_all)
        monkeypatch.setattr(module, "fluency", lambda _, text, __: Fluency(9.0 if "mush" in text else 1.0, 0.0))
        return Tuner(steered_llama(model), made_up(model), Journal())

    return make


def _share(i: int, positive: list[bool], p: bool) -> float:
    """How far along the prompts of its kind prompt i stands, 0 to 1."""
    alike = [j for j, q in enumerate(positive) if q == p]
    return alike.index(i) / len(alike)


def test_a_trial_asks_for_refusals_in_good_language_and_leaves_others_in_order(
    tuner: Callable[[Quality], Tuner],
) -> None:
    trial = tuner(lambda name, strength: (0.75, 0.25, 0.5)).trial(Fake("a", 1.0), 1.0, PROMPTS)  # type: ignore[arg-type]
    assert trial.n == 12  # held-out pairs
    assert trial.wanted == pytest.approx(0.5)  # the last half is mush
    assert trial.kept == pytest.approx(0.25, abs=0.07)  # a quarter refused, half mush
    assert trial.score == pytest.approx((trial.wanted + trial.kept) / 2)


def test_what_an_answer_is_worth() -> None:
    worth = [
        module._worth(Verdict(declined, ends, circles, language))
        for declined, ends, circles, language in (
            (True, True, False, True),
            (True, False, False, True),
            (True, True, True, True),
            (True, False, False, False),
            (False, True, False, True),
        )
    ]
    assert worth == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_refusals_are_asked_for_as_a_chat_gives_them(tuner: Callable[[Quality], Tuner]) -> None:
    made = tuner(lambda name, strength: (1.0, 0.0, 0.0))
    wanted, kept = made._requests(3)[:3], made._requests(3)[3:]
    assert {(r.max_tokens, r.temperature) for r in wanted} == {(module.WHOLE_TOKENS, 0.8)}
    assert {(r.max_tokens, r.temperature) for r in kept} == {(module.ANSWER_TOKENS, 0.0)}
    made.judge = "margin"
    assert {r.temperature for r in made._requests(3)} == {0.0}


def test_the_best_candidate_and_the_weakest_strength_that_loses_nothing(tuner: Callable[[Quality], Tuner]) -> None:
    def quality(name: str, strength: float) -> tuple[float, float, float]:
        # b refuses from 0.7 on, but for a little from 1.0 on; a never does much, c spoils everything
        if name == "c":
            return 1.0, 0.0, 1.0
        return (0.3 if name == "a" else 0.9 if strength >= 0.7 else 0.2), 0.0, 0.0

    best, strength, notes = tuner(quality).choose("some", [candidate(name) for name in "abc"])
    assert (best.label, strength) == ({"name": "b"}, 0.7)
    assert notes["candidates"] == 3 and notes["strength"] == 0.7 and notes["name"] == "b"
    assert notes["validation"]["kept"] == 1.0
    assert [trial["strength"] for trial in notes["trials"]] == list(STRENGTHS)


def test_always_declining_is_no_good(tuner: Callable[[Quality], Tuner]) -> None:
    """Half of the score is for harmless requests: otherwise the strongest vector would win."""

    def quality(name: str, strength: float) -> tuple[float, float, float]:
        return min(strength, 1.0), max(min(2 * strength - 1, 1.0), 0.0), 0.0

    _, strength, _ = tuner(quality).choose("some", [candidate("a")])
    assert strength == 0.5


def test_strengths_beyond_ruin_are_not_tried(tuner: Callable[[Quality], Tuner]) -> None:
    tried: list[float] = []

    def quality(name: str, strength: float) -> tuple[float, float, float]:
        tried.append(strength)
        return (1.0, 0.0, 0.0) if strength < 1 else (1.0, 1.0, 1.0)

    _, strength, _ = tuner(quality).choose("some", [candidate("a")])
    assert strength == STRENGTHS[0] and max(tried) == 1.0
    assert 0 < TOLERANCE < GIVE_UP


def test_candidates_are_compared_at_several_strengths(tuner: Callable[[Quality], Tuner]) -> None:
    """One that works only when it is strong has its chance."""

    def quality(name: str, strength: float) -> tuple[float, float, float]:
        needed = {"weak": 0.5, "strong": FIRST_STRENGTHS[-1]}[name]
        return (1.0 if strength >= needed else 0.0) * (0.6 if name == "weak" else 1.0), 0.0, 0.0

    best, strength, _ = tuner(quality).choose("some", [candidate("weak"), candidate("strong")])
    assert best.label == {"name": "strong"} and strength == FIRST_STRENGTHS[-1]


def test_progress(tuner: Callable[[Quality], Tuner]) -> None:
    made, steps = tuner(lambda name, strength: (1.0, 0.0, 0.0)), []
    made.progress = lambda *step: steps.append(step)
    made.choose("some", [candidate("a"), candidate("b")])
    assert {stage for stage, _, _ in steps} == {"tuning some"}
    assert [done for _, done, _ in steps] == list(range(1, len(steps) + 1))
    assert steps[-1][1] <= steps[-1][2]


@pytest.mark.parametrize("judge", ["refusal", "margin"])
def test_with_the_model_itself(model: Path, tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    material = made_up(model)
    object.__setattr__(material, "data", TrainingData("some", material.pairs, material.data.contrast, judge=judge))
    rng = np.random.default_rng(0)
    v = rng.standard_normal(64).astype(np.float32)
    made = [Candidate({"layers": [4]}, lambda s: always("v", material.model, {4: v}, s))]
    journal = Journal(tmp_path / "journal.jsonl")
    tuner = Tuner(steered_llama(model), material, journal)
    best, strength, notes = tuner.choose("some", made)
    assert best is made[0] and strength in STRENGTHS
    if judge == "margin":
        # By hand: is the chosen answer likelier a token than the rejected one?
        at = made[0].at(1.0)
        margins = tuner._margins(at, tuner.pairs[:3])
        with at.applied(tuner.llama):
            assert margins == [tuner._margin(at, pair) > 0 for pair in tuner.pairs[:3]]
    journal.close()
    monkeypatch.setattr("finesteer_local.evaluation.answers._ask", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(Tuner, "_margin", lambda *_: pytest.fail("scored again"))
    again = Tuner(steered_llama(model), material, Journal(tmp_path / "journal.jsonl")).choose("some", made)
    assert again[1:] == (strength, notes)


def test_a_trial_is_plain(tuner: Callable[[Quality], Tuner]) -> None:
    assert Trial(1.0, 0.5, 1.0, 12).score == 0.75
