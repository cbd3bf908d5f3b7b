"""The format as a standard: test vectors, our reader, and the reference reader, which knows nothing of ours."""

from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local import profile_file
from finesteer_local.profile import Profile
from finesteer_local.profile_file import _EXPERT_TENSORS, _GATES
from finesteer_local.steering import ContrastiveGate, Experts, SubspaceGate
from tiny import make_answer_gate, make_kinds, make_profile

HERE = Path(__file__).parent / "data" / "profiles"
DOCS = Path(__file__).parents[1] / "docs"
VECTORS = json.loads((HERE / "decisions.json").read_text("utf-8"))

_spec = importlib.util.spec_from_file_location("reference_reader", DOCS / "reference_reader.py")
assert _spec and _spec.loader
reference_reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference_reader)


def cases() -> list[Any]:
    return [pytest.param(case, id=case["profile"]) for case in VECTORS["cases"]]


@pytest.mark.parametrize("case", cases())
def test_our_reader(case: dict[str, Any]) -> None:
    profile = Profile.load(HERE / case["profile"])
    for prompt in case["prompts"]:
        decision = profile.decide(np.array(prompt["states"], np.float32), n_tokens=prompt["n_tokens"])
        assert decision.score == pytest.approx(prompt["score"], rel=1e-6, abs=1e-6)
        assert decision.g == pytest.approx(prompt["g"], abs=1e-6)
        assert dict(decision.kinds) == pytest.approx(prompt.get("kinds", {}), abs=1e-6)
        for part, found in (("alpha", decision.alpha), ("beta", decision.beta), ("vectors", decision.vectors)):
            assert sorted(found) == sorted(map(int, prompt[part]))
            for layer, numbers in prompt[part].items():
                np.testing.assert_allclose(found[int(layer)], numbers, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", cases())
def test_the_reference_reader(case: dict[str, Any]) -> None:
    profile = reference_reader.Profile(HERE / case["profile"])
    for prompt in case["prompts"]:
        score, g, vectors = profile.decide(np.array(prompt["states"], np.float32), prompt["n_tokens"])
        assert score == pytest.approx(prompt["score"], rel=1e-6, abs=1e-6)
        assert g == pytest.approx(prompt["g"], abs=1e-6)
        assert profile.kinds(np.array(prompt["states"], np.float32)) == pytest.approx(prompt.get("kinds", {}), abs=1e-6)
        assert sorted(vectors) == sorted(map(int, prompt["vectors"]))
        for layer, numbers in prompt["vectors"].items():
            np.testing.assert_allclose(vectors[int(layer)], numbers, rtol=1e-6, atol=1e-6)


def test_the_vectors_say_something() -> None:
    """Every kind of gate is there, and each that can be closed, open and in between is."""
    kinds = {Profile.load(HERE / case["profile"]).gate.kind for case in VECTORS["cases"]}
    assert kinds == set(_GATES)
    values = {case["profile"]: {prompt["g"] for prompt in case["prompts"]} for case in VECTORS["cases"]}
    for name in ("scs", "contrastive", "contrastive_window", "cast_mean", "cast_last"):
        assert {0.0, 1.0} <= values[f"{name}.gguf"], (name, values[f"{name}.gguf"])
    lengths = [
        prompt for case in VECTORS["cases"] if case["profile"] == "length_decay.gguf" for prompt in case["prompts"]
    ]
    assert min(p["n_tokens"] for p in lengths) < 64 < 512 < max(p["n_tokens"] for p in lengths)
    for name in ("scs", "contrastive_ramp", "contrastive_window"):
        assert any(0 < g < 1 for g in values[f"{name}.gguf"]), (name, values[f"{name}.gguf"])


@pytest.mark.parametrize("name", ["kinds.gguf", "kinds_hidden.gguf"])
def test_the_kinds_say_something(name: str) -> None:
    """Each is the likeliest of some prompt, and which it is depends on the stretch that the gate attends to."""
    [case] = [case for case in VECTORS["cases"] if case["profile"] == name]
    profile = Profile.load(HERE / case["profile"])
    assert profile.kinds is not None
    first = {max(prompt["kinds"], key=prompt["kinds"].get) for prompt in case["prompts"]}
    assert len(first) >= 2
    long = np.array(case["prompts"][-1]["states"], np.float32)
    whole = replace(profile, gate=replace(profile.gate, window=0)).decide(long)
    assert dict(whole.kinds) != pytest.approx(case["prompts"][-1]["kinds"], abs=0.01)


def test_both_readers_watch_answers_alike() -> None:
    vectors = json.loads((HERE / "answers.json").read_text("utf-8"))
    ours, theirs = Profile.load(HERE / vectors["profile"]), reference_reader.Profile(HERE / vectors["profile"])
    assert ours.answer_gate is not None and theirs.watches
    found = []
    for answer in vectors["answers"]:
        states = np.array(answer["states"], np.float32)
        watch = ours.answer_gate.start()
        for h in states:
            watch.read(h) if watch.due else watch.pass_by()
        scores, opened_at = theirs.watch(states)
        assert watch.scores == pytest.approx(answer["scores"], abs=1e-6)
        assert scores == pytest.approx(answer["scores"], abs=1e-6)
        assert watch.opened_at == opened_at == answer["opened_at"]
        found.append(opened_at)
    assert None in found and ours.answer_gate.first in found and len({*found}) >= 3
    assert ours.answer_gate.every > 1


def test_the_windows_say_something() -> None:
    """Turns shorter than a window, as long, and longer, where without windows the decision is another one."""
    [case] = [case for case in VECTORS["cases"] if case["profile"] == "contrastive_window.gguf"]
    gate = Profile.load(HERE / case["profile"]).gate
    assert isinstance(gate, ContrastiveGate) and gate.window == 8
    sizes = [len(prompt["states"]) for prompt in case["prompts"]]
    assert min(sizes) < 8 and 8 in sizes and 9 in sizes and max(sizes) > 8 * 8
    others = 0
    for prompt in case["prompts"]:
        states = np.array(prompt["states"], np.float32)
        plain = replace(gate, window=0).score(states[-1], gate.summary(states))
        assert (plain < prompt["score"] - 0.1) == (len(states) > 8)
        others += gate.value(plain) != pytest.approx(prompt["g"])
    assert others >= 3


@pytest.mark.parametrize("gate", ["open", "partly", "selective", "selective, windowed", "selective, last token"])
def test_both_readers_agree_on_other_profiles(tiny: Path, tmp_path: Path, gate: str) -> None:
    made = make_profile(tiny, gate=gate, layers=(1, 3), strength=1.3)
    made.save(tmp_path / "p.gguf")
    ours, theirs = Profile.load(tmp_path / "p.gguf"), reference_reader.Profile(tmp_path / "p.gguf")
    for states in np.random.default_rng(1).standard_normal((50, 6, 64)).astype(np.float32):
        decision = ours.decide(states)
        score, g, vectors = theirs.decide(states)
        assert score == pytest.approx(decision.score, rel=1e-6, abs=1e-6)
        assert g == pytest.approx(decision.g, abs=1e-6)
        assert sorted(vectors) == sorted(decision.vectors)
        for layer, vector in decision.vectors.items():
            np.testing.assert_allclose(vectors[layer], vector, rtol=1e-5, atol=1e-6)


def test_the_bundled_profile(smollm2: Path) -> None:
    path = Path(__file__).parents[1] / "models" / "profiles" / "safety.3eb9c869067f.gguf"
    ours, theirs = Profile.load(path), reference_reader.Profile(path)
    for states in 5 * np.random.default_rng(2).standard_normal((10, 9, 576)).astype(np.float32):
        decision, (score, g, _) = ours.decide(states), theirs.decide(states)
        assert score == pytest.approx(decision.score, rel=1e-5, abs=1e-5)
        assert g == pytest.approx(decision.g, abs=1e-4)


def test_the_example_of_the_page() -> None:
    def array(*numbers: Any) -> np.ndarray:
        return np.array(numbers, np.float32)

    gate = SubspaceGate(array(1, 0, 0), array([1], [0], [0]), array(0.125, 0.25, 0.5, 0.75), 0.5, 2.0, 0.05)
    experts = Experts(
        array([1, 0, 0], [0, 2, 0]), array([0, 0], [0, 0.5], [0, 0]), array(0, -1), array([0], [0], [1]),
        array([1, 0], [0, -1], [0, 0]), array(-1, 0), array([0.5], [1]), array(0.25),
    )  # fmt: skip
    h = array(3, 4, 0)
    score = gate.score(h, h[None, :0])
    vector = 0.5 * gate.value(score) * experts.mix(experts.alpha(h), experts.beta(h))
    assert (score, gate.value(score)) == (pytest.approx(0.2), 0.25)
    np.testing.assert_allclose(vector, (0.03362, 0.18276, 0.15625), atol=5e-6)
    page = (DOCS / "profile-format.md").read_text("utf-8")
    assert "(0.03362, 0.18276, 0.15625)" in page and "g = (0.25 / 0.5)^2 = 0.25" in page


def test_the_reference_reader_stands_alone() -> None:
    source = (DOCS / "reference_reader.py").read_text("utf-8")
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"sys", "numpy", "gguf"}
    assert len(source.splitlines()) < 190


def test_it_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    for version, requires in ((2, []), (1, ["later"])):
        writer = GGUFWriter(tmp_path / "p.gguf", "finesteer")
        writer.add_uint32("finesteer.format_version", version)
        if requires:
            writer.add_array("finesteer.requires", requires)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(ValueError, match=r"version 1|later"):
            reference_reader.Profile(tmp_path / "p.gguf")


def test_the_page_names_every_key_and_tensor(tiny: Path, tmp_path: Path) -> None:
    page = (DOCS / "profile-format.md").read_text("utf-8")
    for kind, (_, tensors, numbers) in _GATES.items():
        assert f"`{kind}`" in page
        for name in tensors:
            assert f"`gate.{name}`" in page, name
        for name in numbers:
            assert f"`finesteer.gate.{name}`" in page, name
    for name, _ in _EXPERT_TENSORS:
        assert f"`{name.format('L')}`" in page, name
    kinds = make_kinds(64, np.random.default_rng(0), width=8)
    profile = make_profile(
        tiny, gate="selective, windowed", length_decay=0.2, kinds=kinds, answer_gate=make_answer_gate(64)
    )
    named = replace(kinds, kinds=tuple(replace(kind, expert="expert a") for kind in kinds.kinds))
    by_kind = {layer: replace(experts, by_kind=True) for layer, experts in profile.experts.items()}
    replace(profile, kinds=named, experts=by_kind).save(tmp_path / "p.gguf")
    assert {*reference_reader.Profile(tmp_path / "p.gguf").keys["finesteer.optional"]} == profile_file.PARTS
    for name, _ in profile_file._KINDS_TENSORS:
        assert f"`{name}`" in page, name
    assert "`answer_gate.weight`" in page
    assert {*reference_reader.Profile(tmp_path / "p.gguf").keys["finesteer.requires"]} == profile_file.FEATURES
    for feature in profile_file.FEATURES:
        assert f"`{feature}`" in page, feature
    for key in reference_reader.Profile(tmp_path / "p.gguf").keys:
        assert key.startswith("GGUF.") or f"`{key.replace('.2.', '.L.')}`" in page, key
