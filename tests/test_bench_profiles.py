"""Gates that are held, and the stand-in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.bench.profiles import closed, opened, several, stand_in
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from reference import answer, plain_llama, steered_llama
from tiny import make_profile

PROMPT = list(range(40, 65))


@pytest.mark.parametrize("gate", ["selective", "open", "closed", "closed last token"])
def test_held_open_and_shut(tiny: Path, gate: str) -> None:
    profile = make_profile(tiny, gate=gate)
    states = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    wanted = profile.decide(states)
    for held, g in ((opened(profile), 1.0), (closed(profile), 0.0)):
        decision = held.decide(states)
        assert (decision.g, decision.open) == (g, g > 0)
        assert (decision.score, decision.threshold) == (wanted.score, wanted.threshold)
        assert (held.gate.pools, held.gate.whole) == (profile.gate.pools, profile.gate.whole)


def test_several_steer_together_as_one(tiny: Path) -> None:
    profile = make_profile(tiny, strength=0.8)
    four = several([profile], 4)
    llama = steered_llama(tiny, profiles=four)
    answer(llama, PROMPT, 1)
    assert [decision.open for decision in llama.last_decisions] == [True] * 4
    assert sum(decision.strength for decision in llama.last_decisions) == pytest.approx(0.8)
    two = several([profile, make_profile(tiny, name="other", gate="closed")], 3)
    assert len({profile.name for profile in two}) == 3


def test_the_stand_in_can_be_used_and_saved(tiny_model: Path, tmp_path: Path) -> None:
    profile = stand_in(read_model_identity(tiny_model))
    profile.save(tmp_path / "p.gguf")
    assert Profile.load(tmp_path / "p.gguf").layers == profile.layers
    llama = steered_llama(tiny_model, profiles=[opened(profile)])
    answer(llama, PROMPT, 2)
    assert llama.last_decision is not None and llama.last_decision.open
    llama.set_profiles([closed(profile)])
    assert answer(llama, PROMPT) == answer(plain_llama(tiny_model), PROMPT)
