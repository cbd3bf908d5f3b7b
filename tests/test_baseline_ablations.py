"""Our profile with a part taken out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import DataError
from finesteer_local.evaluation.baselines.ablations import (
    ABLATIONS,
    with_hard_gate,
    without_experts,
    without_gate,
    without_residual,
)
from finesteer_local.profile import Profile
from finesteer_local.steering import AlwaysGate, ContrastiveGate, SubspaceGate
from tiny import make_gate, make_kinds, make_profile

RNG = np.random.default_rng(0)
TURN = RNG.standard_normal((5, 64)).astype(np.float32)


def vector(profile: Profile, layer: int = 2) -> np.ndarray:
    return np.asarray(profile.decide(TURN).vectors[layer])


def test_without_gate(tiny: Path) -> None:
    profile = make_profile(tiny, gate="closed", strength=2)
    assert not profile.decide(TURN).open
    opened = without_gate(profile)
    assert np.array_equal(vector(opened), vector(replace(profile, gate=AlwaysGate())))
    assert isinstance(opened.gate, AlwaysGate) and opened.strength == 2


def test_without_gate_the_kinds_are_still_told(tiny: Path) -> None:
    kinds = make_kinds(64, np.random.default_rng(0))
    profile = make_profile(tiny, gate="selective", kinds=kinds)
    opened = without_gate(profile)
    for i in range(8):
        closed, decision = (each.decide(TURN[::-1] * i - i) for each in (profile, opened))
        assert decision.g == 1 and decision.kinds == closed.kinds


@pytest.mark.parametrize("shares", [[0.1, 0.2, 0.3, 0.4], None])
def test_without_experts(tiny: Path, shares: list[float] | None) -> None:
    training = {"expert_shares": {"2": shares}} if shares else {}
    profile = make_profile(tiny, gate="selective", layers=(2, 3), strength=2, training=training)
    single = without_experts(profile)
    assert single.gate is profile.gate and single.layers == [2, 3]
    weights = np.array(shares or [0.25] * 4)
    mean = weights @ profile.experts[2].prototypes
    always = replace(single, gate=AlwaysGate())
    assert np.allclose(vector(always), 2 * mean, atol=1e-5)
    other = always.decide(TURN + 1)
    assert np.array_equal(other.vectors[2], vector(always))  # one vector for every prompt


def test_without_residual(tiny: Path) -> None:
    profile = make_profile(tiny, strength=1)
    cut = without_residual(profile)
    decision = profile.decide(TURN)
    assert np.allclose(vector(cut), decision.alpha[2] @ profile.experts[2].prototypes, atol=1e-5)
    assert not np.allclose(vector(cut), vector(profile))
    assert without_residual(cut).experts[2].residual_basis.shape == (64, 0)


@pytest.mark.parametrize("kind", ["partly", "partly, last token", "open"])
def test_a_hard_gate_opens_at_the_same_score_and_then_in_full(tiny: Path, kind: str) -> None:
    gate = make_gate(kind, 64, np.random.default_rng(1))
    profile = make_profile(tiny, gate=gate)
    hard = with_hard_gate(profile).gate
    assert hard.threshold == pytest.approx(gate.threshold)
    for score in np.linspace(gate.threshold - 1, gate.threshold + 1, 41):
        assert hard.value(float(score)) in (0.0, 1.0)
    assert hard.value(gate.threshold + 1e-3) == 1.0
    if not isinstance(gate, AlwaysGate):
        assert hard.value(gate.threshold - 1e-3) == 0.0
        softened = [gate.value(gate.threshold + d) for d in (-1e-2, -1e-3, 1e-3, 1e-2)]
        assert any(0 < g < 1 for g in softened)  # it was soft before


def test_a_gate_that_nobody_knows(tiny: Path) -> None:
    class Other:
        kind = "other"
        pools = False

    profile = make_profile(tiny)
    object.__setattr__(profile, "gate", Other())
    with pytest.raises(DataError, match="kind 'other' cannot be made hard"):
        with_hard_gate(profile)


def test_every_ablation_is_a_sound_profile(tiny: Path, tmp_path: Path) -> None:
    for gate in ("selective", "partly, last token"):
        profile = make_profile(tiny, gate=gate)
        assert isinstance(profile.gate, (ContrastiveGate, SubspaceGate))
        for name, ablation in ABLATIONS.items():
            ablation(profile).save(tmp_path / f"{name}.gguf")
            assert Profile.load(tmp_path / f"{name}.gguf").strength == profile.strength
