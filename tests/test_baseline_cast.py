"""CAST: a condition found by F1 on validation prompts, and a behaviour behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.evaluation.answers import EvalRequest, answer_all
from finesteer_local.evaluation.baselines import cast
from finesteer_local.evaluation.baselines.cast import (
    LastTokenGate,
    MeanGate,
    best_threshold,
    find_condition,
    similarity,
)
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.journal import Journal
from material import made_up
from reference import steered_llama
from tiny import write_tiny_model


def unit(n: int = 64, at: int = 0) -> np.ndarray:
    v = np.zeros(n, np.float32)
    v[at] = 1
    return v


def test_similarity_is_the_cosine_to_the_bounded_projection() -> None:
    rng = np.random.default_rng(0)
    c = rng.standard_normal(8)
    c = (c / np.linalg.norm(c)).astype(np.float32)
    states = rng.standard_normal((5, 8)).astype(np.float32)
    for h, s in zip(states, similarity(states, c), strict=True):
        projected = np.tanh(np.outer(c, c) @ h)
        assert s == pytest.approx(h @ projected / np.linalg.norm(h) / np.linalg.norm(projected), abs=1e-5)
    assert np.allclose(similarity(states, c), similarity(states, -c), atol=1e-6)  # a projection has no sign
    assert similarity(np.zeros((1, 8), np.float32), c)[0] == 0


def test_the_best_threshold_by_f1() -> None:
    threshold, f1 = best_threshold(np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.2]))
    assert f1 == 1 and 0.2 < threshold < 0.7
    threshold, f1 = best_threshold(np.array([0.9, 0.3]), np.array([0.5, 0.1]))
    assert f1 == pytest.approx(0.8) and 0.1 < threshold < 0.3  # two hits and one false alarm beat one hit

    def counted(t: float) -> float:
        hits, false = sum(x >= t for x in (0.9, 0.3)), sum(x >= t for x in (0.5, 0.1))
        return 2 * hits / (hits + false + 2)

    assert f1 == pytest.approx(max(counted(t) for t in np.linspace(0, 1, 101)))


@pytest.mark.parametrize("kind", [LastTokenGate, MeanGate])
@pytest.mark.parametrize("side", [1, -1])
def test_gates_open_on_one_side(kind: type[LastTokenGate], side: int) -> None:
    alike, other = unit(), unit(at=1) + 0.1 * unit()
    gate = kind(unit(), side, threshold=side * 0.5)
    for h, s in ((alike, 1.0), (other, similarity(other[None], unit())[0])):
        score = gate.score(h, gate.summary(h[None]))
        assert score == pytest.approx(side * s, abs=1e-5)
        assert gate.value(score) == float(side * s >= side * 0.5)
    assert gate.value(gate.threshold) == 1.0


def test_what_the_gates_read() -> None:
    turn = np.stack([unit(at=1), unit(at=1), unit()])
    last, mean = LastTokenGate(unit(), 1, 0.5), MeanGate(unit(), 1, 0.5)
    assert (last.pools, mean.pools) == (False, True)
    assert last.score(turn[-1], last.summary(turn)) == pytest.approx(1, abs=1e-5)
    assert mean.score(turn[-1], mean.summary(turn)) == pytest.approx(
        similarity(turn.mean(axis=0)[None], unit())[0], abs=1e-5
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cast") / "tiny.gguf", n_layer=12)


def test_the_condition_tells_the_prompts_apart(model: Path) -> None:
    material = made_up(model)
    gate, layer, found = find_condition(material)
    assert layer in material.positive.layers and found["f1"] > 0.95
    assert isinstance(gate, LastTokenGate) and np.abs(gate.condition).argmax() == 0  # where prompts were shifted
    assert np.linalg.norm(gate.condition) == pytest.approx(1, abs=1e-5)
    read = type(material.positive).mean if gate.pools else type(material.positive).last
    for side, wanted in ((material.positive, 1.0), (material.contrast, 0.0)):
        states = read(side, layer)[list(side.held)]
        opened = [gate.value(gate.score(h, gate.summary(h[None]))) for h in states]
        assert np.mean(opened) == pytest.approx(wanted, abs=0.1)


def test_a_condition_steers_or_leaves_alone(model: Path) -> None:
    candidates = cast.candidates(made_up(model))
    assert {len(c.label["layers"]) > 1 for c in candidates} == {True, False}
    steering = candidates[0].at(1.0)
    assert isinstance(steering, ProfileSteering) and isinstance(steering.scaled(2.0), ProfileSteering)
    [profile] = steering.profiles
    request = [EvalRequest([{"role": "user", "content": "hello"}], 4)]
    seen = set()
    for threshold in (-9.0, 9.0):  # open for everything, and for nothing
        object.__setattr__(profile, "gate", LastTokenGate(unit(), 1, threshold))
        [answer] = answer_all(steered_llama(model), ProfileSteering((profile,)), request, Journal())
        assert answer.reading.threshold == threshold
        seen.add(answer.reading.steers)
    assert seen == {True, False}
