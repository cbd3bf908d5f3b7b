"""Refitting: corrections from a chat into a profile's gate, and out of it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli import error_of, good
from finesteer_local import catalog, corrections
from finesteer_local.corrections import LEAVE, STEER, Correction
from finesteer_local.errors import DataError, ProfileError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import refit as module
from finesteer_local.training.data import Pair, Prompt, TrainingData
from finesteer_local.training.refit import Reference, keep_original, original_of, reference, refit
from tiny import make_profile

WORDS = ("alpha", "beta", "gamma", "delta", "rho", "tau", "sigma", "phi")


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 7))) + f" {i + 1000 * seed}" for i in range(n)]


DATA = TrainingData(
    "calm",
    [Pair(Prompt(messages(text)), "no", "yes") for text in texts(150, 1)],
    [Prompt(messages(text)) for text in texts(150, 2)],
)


@pytest.fixture
def llama(tiny: Path) -> SteeredLlama:
    return open_model(tiny, n_threads=1)


@pytest.fixture
def profile(tiny: Path, llama: SteeredLlama) -> Profile:
    """Its gate opens on half of what it reads."""
    made = make_profile(tiny, name="calm", gate="selective", training={"seed": 0, "data_hash": "other"})
    llama.set_profiles([made])
    scores = [llama.check(messages(text)).decisions[0].score for text in texts(40, 3)]
    middle = float(np.median(scores))
    return replace(made, gate=replace(made.gate, low=middle, high=middle + 0.1))  # type: ignore[type-var]


@pytest.fixture
def known(tiny: Path, profile: Profile) -> Reference:
    return reference(tiny, profile, lambda: DATA, n_threads=1)


def decided(llama: SteeredLlama, profile: Profile, text: str) -> tuple[bool, float]:
    llama.set_profiles([profile])
    decision = llama.check(messages(text)).decisions[0]
    return decision.g > 0, abs(decision.score - decision.threshold)


def wrong(llama: SteeredLlama, profile: Profile, n: int) -> list[Correction]:
    """Corrections of the prompts that are decided most narrowly."""
    found = sorted((*decided(llama, profile, text), text) for text in texts(60, 4))
    found.sort(key=lambda row: row[1])
    return [
        Correction("calm", profile.model.fingerprint, messages(text), LEAVE if opened else STEER)
        for opened, _, text in found[:n]
    ]


@pytest.mark.parametrize("n", [1, 3])
def test_the_named_prompts_are_decided_as_said_and_others_as_before(
    llama: SteeredLlama, profile: Profile, known: Reference, n: int
) -> None:
    found = wrong(llama, profile, n)
    refitted = refit(llama, profile, found, known)
    assert refitted.corrected.taken
    for i in refitted.corrected.taken:
        opened, distance = decided(llama, refitted.profile, found[i].text)
        assert opened == (found[i].should == STEER) and distance > 0.1
    assert len(refitted.flipped) <= 0.01 * refitted.n_counted and refitted.n_counted == 100
    assert refitted.profile.training["corrections"]["ids"] == [found[i].id for i in refitted.corrected.taken]
    assert refitted.profile.experts is profile.experts


def test_what_the_gate_knows_is_read_once(tiny: Path, profile: Profile, known: Reference) -> None:
    def unasked() -> TrainingData:
        raise AssertionError

    costs: list[int] = []
    again = reference(tiny, profile, unasked, cost=costs.append, n_threads=1)
    assert np.array_equal(again.scores, known.scores) and again.texts == known.texts and not costs
    assert np.array_equal(again.states, known.states.astype(np.float16)) and len(again.states) == 300
    [file] = (module.paths.cache_dir() / "gates").iterdir()
    file.write_bytes(b"damaged")
    # The states themselves are kept by the cache of all states.
    assert len(reference(tiny, profile, lambda: DATA, cost=costs.append, n_threads=1).texts) == 300 and not costs


def test_what_has_to_be_read_is_told(tiny: Path, profile: Profile) -> None:
    costs: list[int] = []
    reference(tiny, profile, lambda: DATA, cost=costs.append, n_threads=1)
    assert costs == [300]


def test_only_a_contrastive_gate_takes_corrections(tiny: Path, llama: SteeredLlama, known: Reference) -> None:
    always = make_profile(tiny, name="calm", gate="open")
    with pytest.raises(DataError, match="takes no corrections"):
        refit(llama, always, [Correction("calm", always.model.fingerprint, messages("x"), STEER)], known)


def test_the_profile_as_it_was_trained(profile: Profile, llama: SteeredLlama, known: Reference) -> None:
    refitted = refit(llama, profile, wrong(llama, profile, 1), known).profile
    assert original_of(profile) is profile
    with pytest.raises(ProfileError, match="train it anew"):
        original_of(refitted)
    keep_original(profile)
    assert np.array_equal(original_of(refitted).gate.last_weight, profile.gate.last_weight)  # type: ignore[attr-defined]
    keep_original(replace(profile, gate_layer=0))
    with pytest.raises(ProfileError, match="another training"):
        original_of(refitted)


def test_the_command(
    tiny: Path, tmp_path: Path, llama: SteeredLlama, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finesteer_local.training.known.data_of", lambda *_, **__: DATA)
    assert "/wrong in a chat keeps one" in error_of("profiles", "refit", "calm")
    profile.save(tmp_path / "calm.gguf")
    good("profiles", "add", tmp_path / "calm.gguf")
    [correction] = wrong(llama, profile, 1)
    corrections.keep(replace(correction, model_path=str(tiny)))
    result = good("profiles", "refit", "calm", "--threads", "1")
    assert f"  {correction.id}  {correction.should}" in result.stdout
    assert "1 of 1 corrections taken in" in result.stdout and "Of 100 other prompts" in result.stdout
    assert "300 prompts are read once" in result.stderr
    [kept] = catalog.available_profiles(profile.model.fingerprint)
    assert decided(llama, Profile.load(kept.path), correction.text)[0] == (correction.should == STEER)
    # Deleted, it is forgotten.
    good("profiles", "corrections", "--delete", correction.id)
    assert "is what it was trained to be" in good("profiles", "refit", "calm", "--model", tiny).stdout
    assert "corrections" not in Profile.load(kept.path).training
    assert decided(llama, Profile.load(kept.path), correction.text)[0] == (correction.should == LEAVE)
    assert "there are no corrections" in error_of("profiles", "refit", "calm", "--model", tiny)


def test_a_model_that_is_gone(tiny: Path, profile: Profile, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    corrections.keep(Correction("calm", profile.model.fingerprint, messages("x"), STEER, model_path=str(gone)))
    assert "say where it is with --model" in error_of("profiles", "refit", "calm")
