"""The paper's own method: SCS and MoSE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.evaluation.baselines import finesteer
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.material import Material
from finesteer_local.steering import SubspaceGate
from material import made_up
from tiny import write_tiny_model

torch = pytest.importorskip("torch")


pytestmark = pytest.mark.usefixtures("one_thread")


def telling(material: Material) -> Material:
    """The material with states that show which of four directions a pair's delta has."""
    which = np.arange(len(material.pairs)) % 4
    shift = np.eye(material.model.n_embd, dtype=np.float32)[2 + which]
    return replace(
        material,
        states={layer: states + 12 * shift for layer, states in material.states.items()},
        deltas={layer: 0.1 * deltas + 8 * shift for layer, deltas in material.deltas.items()},
    )


def test_candidates_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", n_layer=6)
    material = telling(made_up(model))
    found = finesteer.candidates(material, tmp_path / "kept")
    assert {c.label["scope"] for c in found} == {"turn", "prompt"}
    for candidate in found:
        steering = candidate.at(0.5)
        assert isinstance(steering, ProfileSteering)
        [profile] = steering.profiles
        assert isinstance(profile.gate, SubspaceGate) and profile.gate.eps == 0.05
        assert profile.layers == candidate.label["layers"] == [profile.gate_layer]
        assert (profile.strength, profile.scope) == (0.5, candidate.label["scope"])
        assert len(profile.gate.calibration) == len(material.positive.held)
        [experts] = profile.experts.values()
        assert 4 <= len(experts.prototypes) <= 10 and experts.residual_basis.shape[1] == 10
        assert experts.distinguishes
    monkeypatch.setattr(finesteer, "_train", lambda *_: pytest.fail("trained again"))
    again = finesteer.candidates(material, tmp_path / "kept")
    assert [c.at(1.0).digest for c in again] == [c.at(1.0).digest for c in found]


def test_experts_that_learnt_nothing_are_one_vector(tmp_path: Path) -> None:
    """Where states say nothing of the deltas, every prompt gets what the mixture starts with: about their mean."""
    material = made_up(write_tiny_model(tmp_path / "tiny.gguf", n_layer=6))
    for candidate in finesteer.candidates(material, tmp_path / "kept"):
        steering = candidate.at(1.0)
        assert isinstance(steering, ProfileSteering)
        [profile] = steering.profiles
        [(layer, experts)] = profile.experts.items()
        assert len(experts.prototypes) == 1 and experts.residual_basis.shape[1] == 0
        assert not experts.distinguishes and not experts.labels
        mean = material.deltas[layer][material.learn].mean(axis=0)
        vector = experts.prototypes[0]
        assert vector @ mean > 0.9 * np.linalg.norm(vector) * np.linalg.norm(mean)
