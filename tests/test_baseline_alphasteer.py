"""AlphaSteer: the null space of ordinary prompts, and the ridge regression inside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.evaluation.answers import EvalRequest, answer_all
from finesteer_local.evaluation.baselines import alphasteer
from finesteer_local.evaluation.baselines.alphasteer import null_space, regression
from finesteer_local.evaluation.interventions import MapSteering
from finesteer_local.evaluation.journal import Journal
from material import made_up
from reference import steered_llama
from tiny import write_tiny_model

RNG = np.random.default_rng(0)


def test_the_null_space_has_the_least_energy() -> None:
    scales = np.array([9.0, 5, 3, 1, 0.1, 0.01])
    states = (RNG.standard_normal((200, 6)) * scales).astype(np.float32)
    basis = null_space(states, 0.5)
    assert basis.shape == (6, 3) and np.allclose(basis.T @ basis, np.eye(3), atol=1e-9)
    assert np.linalg.norm(basis[:3]) < 0.2  # next to nothing of the loud directions
    assert null_space(states, 0.01).shape == (6, 1)


def test_the_regression_is_the_papers_closed_form() -> None:
    """`D = (P H'H P + ridge P)^+ P H' R` and `M = P D`, with every row of R the refusal direction."""
    harmful = RNG.standard_normal((30, 8)).astype(np.float32)
    direction = RNG.standard_normal(8)
    basis = null_space(RNG.standard_normal((50, 8)).astype(np.float32), 0.6)
    p = basis @ basis.T
    x = harmful.astype(np.float64) @ p
    d = np.linalg.pinv(x.T @ x + 10 * p.T @ p) @ x.T @ np.tile(direction, (30, 1))
    assert np.allclose(np.outer(regression(harmful, basis, 10.0), direction), p @ d, atol=1e-5)


def test_ordinary_states_are_left_alone_and_harmful_ones_are_moved() -> None:
    ordinary = RNG.standard_normal((200, 20)).astype(np.float32)
    ordinary[:, :6] = 0  # a real null space
    harmful = RNG.standard_normal((200, 20)).astype(np.float32)
    harmful[:, 2] += 5
    w = regression(harmful, null_space(ordinary, 0.3), 1.0)
    assert np.abs(ordinary @ w).max() < 1e-4
    assert (harmful @ w).mean() == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("alpha") / "tiny.gguf", n_layer=12)


def test_candidates(model: Path) -> None:
    material = made_up(model)
    found = alphasteer.candidates(material)
    assert {c.label["every_token"] for c in found} == {True, False}
    assert len({c.label["null_space"] for c in found}) > 1
    for candidate in found:
        steering = candidate.at(0.5)
        assert isinstance(steering, MapSteering) and steering.strength == 0.5
        assert sorted(steering.maps) == candidate.label["layers"]
        for layer, (w, r) in steering.maps.items():
            assert np.allclose(r * len(steering.maps), material.learnt_deltas(layer).mean(axis=0), atol=1e-5)
            assert (w.dtype, r.dtype) == (np.float32, np.float32)
            inside = material.positive.last(layer)[list(material.positive.held)] @ w
            outside = material.contrast.last(layer)[list(material.contrast.held)] @ w
            assert inside.mean() > outside.mean() + 0.3
    [answer] = answer_all(
        steered_llama(model), found[0].at(1.0), [EvalRequest([{"role": "user", "content": "hi"}], 4)], Journal()
    )
    assert answer.reading.steers
