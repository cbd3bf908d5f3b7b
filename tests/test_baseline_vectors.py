"""Control vectors: mean difference and principal components, and the profiles made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.evaluation.baselines import control_vector, pca
from finesteer_local.evaluation.baselines.vectors import Candidate, always, principal_direction
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.material import Material
from finesteer_local.runtime.prompt import greedy_answer
from finesteer_local.steering import Experts
from material import made_up
from reference import control, plain_llama, steered_llama
from tiny import write_tiny_model

H = np.ones(64, np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("vectors") / "tiny.gguf", n_layer=12)


@pytest.fixture(scope="module")
def material(model: Path) -> Material:
    return made_up(model)


def vectors(candidate: Candidate, strength: float = 1.0) -> dict[int, np.ndarray]:
    """What is added at every layer, whatever the prompt."""
    steering = candidate.at(strength)
    assert isinstance(steering, ProfileSteering)
    [profile] = steering.profiles
    return dict(profile.decide(H[None]).vectors)


def test_one_expert_gives_its_vector() -> None:
    v = np.arange(64, dtype=np.float32)
    experts = Experts.fixed(v)
    for h in (H, -3 * H):
        assert np.array_equal(experts.mix(experts.alpha(h), experts.beta(h)), v)


def test_always_is_llama_cpps_own_control_vector(model: Path) -> None:
    v = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    messages = [{"role": "user", "content": "hello"}]
    llama = steered_llama(model)
    with always("v", llama.identity, {4: v, 6: v}, 2.0).applied(llama):
        steered = greedy_answer(llama, messages, 8)
    plain = plain_llama(model)
    control(plain, {4: v, 6: v})  # two layers share the strength
    assert steered == greedy_answer(plain, messages, 8) != greedy_answer(plain_llama(model), messages, 8)


def test_control_vector_is_the_mean_difference(material: Material) -> None:
    found = control_vector.candidates(material)
    assert [c.label["layers"] for c in found[:3]] == [[4], [5], [6]]
    for candidate in found:
        layers = candidate.label["layers"]
        for layer, vector in vectors(candidate, 0.5).items():
            wanted = 0.5 * material.deltas[layer][list(material.learn)].mean(axis=0) / len(layers)
            assert np.allclose(vector, wanted, atol=1e-6)
    assert any(len(c.label["layers"]) > 2 for c in found)


def test_principal_direction_has_the_sign_and_the_reach_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    axis = np.zeros(20)
    axis[3] = 1
    for sign in (1, -1):
        deltas = (sign * rng.uniform(3, 9, (80, 1)) * axis + 0.1 * rng.standard_normal((80, 20))).astype(np.float32)
        found = principal_direction(deltas)
        assert found @ axis == pytest.approx(sign * np.abs(deltas[:, 3]).mean(), rel=0.01)
        assert np.linalg.norm(found) == pytest.approx(abs(found @ axis), rel=0.01)
        assert np.array_equal(principal_direction(deltas[::-1]) @ axis > 0, sign > 0)


def test_centring_takes_out_what_all_differences_share() -> None:
    """Known of repeng's `pca_diff`: what is common to all pairs does not vary."""
    rng = np.random.default_rng(0)
    deltas = np.zeros((80, 20), np.float32)
    deltas[:, 0], deltas[:, 1] = 5.0, rng.standard_normal(80)
    assert abs(principal_direction(deltas)[0]) > 4
    centred = principal_direction(deltas, centred=True)
    assert np.abs(centred).argmax() == 1


def test_pca_candidates(material: Material) -> None:
    found = pca.candidates(material)
    assert {c.label["centred"] for c in found} == {True, False}
    for candidate in found:
        for vector in vectors(candidate).values():
            if not candidate.label["centred"]:
                assert np.abs(vector).argmax() == 1 and vector[1] > 0  # where answers were shifted


def test_strength_scales(material: Material) -> None:
    for candidate in (control_vector.candidates(material)[0], pca.candidates(material)[0]):
        [weak], [strong] = vectors(candidate, 0.5).values(), vectors(candidate, 2.0).values()
        assert np.allclose(4 * weak, strong, rtol=1e-5)
        assert candidate.at(0.5).digest != candidate.at(2.0).digest
