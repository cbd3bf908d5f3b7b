"""`profiles watch` and `profiles kinds`: a part is learnt, the rest of the profile stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli import error_of, good
from finesteer_local import catalog
from finesteer_local.profile import Profile
from finesteer_local.steering import Kind
from finesteer_local.training import kinds as kinds_module
from finesteer_local.training import parts
from finesteer_local.training.data import KindOf, TrainingData
from test_own_answers import made
from tiny import make_profile

pytestmark = pytest.mark.usefixtures("one_thread")
TABLE = tuple(KindOf(Kind(f"kind_{i}", f"about {i}"), (f"kind_{i}",)) for i in range(3))


@pytest.fixture(autouse=True)
def no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test adds is there."""
    monkeypatch.setattr(catalog, "_bundle", lambda: tmp_path)


def recipes(monkeypatch: pytest.MonkeyPatch, data: TrainingData) -> None:
    def load_recipe(name: str) -> TrainingData:
        assert name == "some"
        return data

    monkeypatch.setattr(parts, "load_recipe", load_recipe)


def saved(tiny: Path, path: Path, gate: str = "selective") -> Path:
    training = {"recipe": "some", "figures": {"gate": None}}
    make_profile(tiny, name="loud", gate=gate, training=training).save(path)
    return path


def _unknown(tiny: Path, folder: Path) -> Path:
    path = folder / "unknown.gguf"
    make_profile(tiny, name="unknown").save(path)
    return path


def test_watch(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finesteer_local.training import answer_gate, own_answers

    monkeypatch.setattr(own_answers, "TOKENS", 6)
    monkeypatch.setattr(answer_gate, "LEAST", 8)
    monkeypatch.setattr(answer_gate, "USEFUL", 0.0)  # a random model's answers show nothing
    recipes(monkeypatch, made(30))
    mine, reads = saved(tiny, tmp_path / "mine.gguf"), tmp_path / "reads.gguf"
    assert "does not say by which recipe" in error_of("profiles", "watch", _unknown(tiny, tmp_path), tiny)
    told = good("profiles", "watch", mine, tiny, "--answers", "64", "-o", reads, "--threads", "1")
    assert f"loud for {tiny.name} reads answers now." in told.stdout and "watching  opens on" in told.stdout
    before, after = Profile.load(mine), Profile.load(reads)
    assert before.answer_gate is None and after.answer_gate is not None
    assert after.answer_gate.layer == before.gate_layer and after.layers == before.layers
    assert after.training["figures"]["answer_gate"]["answers"] == 64
    assert "exists; choose another name" in error_of("profiles", "watch", mine, tiny, "-o", reads)
    monkeypatch.setattr(answer_gate, "USEFUL", 1.1)
    useless = error_of("profiles", "watch", mine, tiny, "--answers", "64", "-o", tmp_path / "other.gguf")
    assert "do not show what was asked for" in useless and not (tmp_path / "other.gguf").exists()
    monkeypatch.setattr(answer_gate, "LEAST", 1000)
    assert "ask for more" in error_of("profiles", "watch", mine, tiny, "--answers", "64", "-o", reads, "--force")
    monkeypatch.setattr(parts, "load_recipe", lambda name: replace(made(30), judge="margin"))
    assert "not one of refusals" in error_of("profiles", "watch", mine, tiny, "--recipe", "brief")


def test_kinds(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes(monkeypatch, replace(made(30), kinds=TABLE))
    monkeypatch.setattr(kinds_module, "LEAST", 8)
    mine, tells, anew = saved(tiny, tmp_path / "mine.gguf"), tmp_path / "tells.gguf", tmp_path / "anew.gguf"
    told = good("profiles", "kinds", mine, tiny, "-o", tells, "--threads", "1")
    assert f"loud for {tiny.name} tells kinds now." in told.stdout and "kinds     the right one is" in told.stdout
    before, after = Profile.load(mine), Profile.load(tells)
    assert before.kinds is None and after.kinds is not None and after.kinds.names == ("kind_0", "kind_1", "kind_2")
    assert after.training["figures"]["kinds"]["first"] >= 0.0
    states = np.random.default_rng(0).standard_normal((9, after.model.n_embd)).astype(np.float32)
    old, new = before.decide(states), after.decide(states)
    assert (old.score, old.g) == (new.score, new.g) and len(new.kinds) == 3
    # Where a profile tells kinds, how likely a request needs intervention is told as before.
    replace(after, kinds=replace(after.kinds, slope=0.25, offset=-2.0)).save(tells)
    good("profiles", "kinds", tells, tiny, "-o", anew, "--threads", "1")
    again = Profile.load(anew).kinds
    assert again is not None and (again.slope, again.offset) == (0.25, -2.0)
    np.testing.assert_array_equal(again.weight, after.kinds.weight)


def test_kinds_that_cannot_be_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes(monkeypatch, made(30))
    mine, out = saved(tiny, tmp_path / "mine.gguf"), tmp_path / "out.gguf"
    assert "names no kinds" in error_of("profiles", "kinds", mine, tiny, "-o", out)
    always = saved(tiny, tmp_path / "always.gguf", "open")
    assert "a gate of the kind 'always' cannot tell kinds" in error_of("profiles", "kinds", always, tiny, "-o", out)
    rare = tuple(KindOf(each.kind, (f"no_{i}",)) for i, each in enumerate(TABLE))
    recipes(monkeypatch, replace(made(30), kinds=rare))
    assert "too few prompts have a kind" in error_of("profiles", "kinds", mine, tiny, "-o", out)
    assert not out.exists()
