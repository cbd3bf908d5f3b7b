"""The paper's own method: SCS and MoSE."""

from __future__ import annotations

from pathlib import Path

import pytest

from finesteer_local.evaluation.baselines import finesteer
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.steering import SubspaceGate
from material import made_up
from tiny import write_tiny_model

pytest.importorskip("torch")


def test_candidates_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", n_layer=6)
    material = made_up(model)
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
    monkeypatch.setattr(finesteer, "_train", lambda *_: pytest.fail("trained again"))
    again = finesteer.candidates(material, tmp_path / "kept")
    assert [c.at(1.0).digest for c in again] == [c.at(1.0).digest for c in found]
