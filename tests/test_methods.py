"""The methods by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finesteer_local.cli import eval as command
from finesteer_local.errors import DataError, MissingExtraError
from finesteer_local.evaluation import methods as module
from finesteer_local.evaluation.interventions import UNSTEERED, MapSteering, ProfileSteering
from finesteer_local.evaluation.journal import Journal
from finesteer_local.evaluation.measure import Method
from finesteer_local.evaluation.methods import BASELINES, GROUPS, NAMES, build_methods, expand
from finesteer_local.runtime import SteeredLlama
from material import small_data
from reference import steered_llama
from tiny import make_profile, write_tiny_model


def test_names_are_those_of_the_command() -> None:
    assert {*command.METHODS} == {*NAMES, *GROUPS}
    assert {*command.BASELINES} == {*BASELINES} and {*command.ABLATIONS} == {*GROUPS["ablations"]}


def test_expand() -> None:
    assert expand(["ours"]) == ["none", "ours"]
    assert expand(["ours", "cast", "none", "cast"]) == ["none", "cast", "ours"]
    assert expand(["all"]) == list(NAMES)
    assert expand(["ablations", "ours"]) == ["none", "ours", "no-gate", "no-experts", "no-residual", "hard-gate"]
    assert expand([]) == ["none"]


def built(model: Path, folder: Path, names: list[str], **options: Any) -> list[Method]:
    profiles = options.pop("profiles", [make_profile(model, gate="partly")])
    llama: SteeredLlama = options.pop("llama", None) or steered_llama(model)
    return build_methods(llama, expand(names), profiles, Journal(), folder, **options)


def test_ours_and_its_ablations_need_no_data(tiny: Path, tmp_path: Path) -> None:
    methods = built(tiny, tmp_path / "kept", ["ours", "ablations"], load=lambda: pytest.fail("loaded"))
    assert [m.name for m in methods] == expand(["ours", "ablations"])
    assert methods[0].intervention is UNSTEERED
    assert len({m.intervention.digest for m in methods}) == len(methods)
    assert not (tmp_path / "kept").exists()


def test_several_profiles_are_ours_together(tiny: Path, tmp_path: Path) -> None:
    both = [make_profile(tiny), make_profile(tiny, name="other", gate="closed")]
    methods = built(tiny, tmp_path, ["ours", "no-gate"], profiles=both)
    for method in methods[1:]:
        assert isinstance(method.intervention, ProfileSteering)
        assert [p.name for p in method.intervention.profiles] == ["test", "other"]


def test_what_is_missing_is_said(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name a profile with --profile"):
        built(tiny, tmp_path, ["ours"], profiles=[])
    with pytest.raises(DataError, match="name its recipe with --recipe"):
        built(tiny, tmp_path, ["pca"])
    assert [m.name for m in built(tiny, tmp_path, ["none"], profiles=[])] == ["none"]


def test_the_train_extra_is_missed_before_anything_is_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finesteer_local.training.util.find_spec", lambda name: None)
    monkeypatch.setattr(module, "harvest_material", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(MissingExtraError, match=r"extra train\)"):
        built(tiny, tmp_path, ["pca", "finesteer"], load=small_data)


def test_all_of_them_on_one_set_of_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    model = write_tiny_model(tmp_path / "tiny.gguf", n_layer=6)
    monkeypatch.setattr("finesteer_local.evaluation.method_tuner.PROMPTS", 2)
    monkeypatch.setattr("finesteer_local.evaluation.method_tuner.FEWER", 1)
    monkeypatch.setattr("finesteer_local.evaluation.method_tuner.STRENGTHS", (0.7, 1.4))
    monkeypatch.setattr("finesteer_local.evaluation.method_tuner.ANSWER_TOKENS", 2)
    monkeypatch.setattr("finesteer_local.evaluation.method_tuner.WHOLE_TOKENS", 2)
    harvested, original = [], module.harvest_material

    def harvest(*args: Any, **options: Any) -> Any:
        harvested.append(1)
        return original(*args, **options)

    monkeypatch.setattr(module, "harvest_material", harvest)
    methods = built(model, tmp_path / "kept", ["all"], load=small_data)
    assert [m.name for m in methods] == list(NAMES) and harvested == [1]
    trained = {m.name: m for m in methods if m.name in BASELINES}
    assert len({m.intervention.digest for m in methods}) == len(methods)
    for name, method in trained.items():
        assert method.source == BASELINES[name]
        assert method.notes["strength"] in (0.7, 1.4) and method.notes["validation"]["prompts"] == 2
    assert isinstance(trained["alphasteer"].intervention, MapSteering)
    assert trained["cast"].notes["condition"].startswith("cast-")
    again = built(model, tmp_path / "kept", ["all"], load=small_data)
    assert [m.intervention.digest for m in again] == [m.intervention.digest for m in methods]
