"""Whether a model can be steered is found out by trying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp

from finesteer_local.errors import SteeringError
from finesteer_local.runtime import probe, steered
from finesteer_local.runtime.control import Vectors
from finesteer_local.runtime.probe import steerable_layers
from finesteer_local.runtime.tapped import TappedLlama
from reference import SETTINGS, answer, logits, plain_llama, steered_llama
from tiny import make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

PROMPT = list(range(40, 65))


@pytest.mark.parametrize("n_layer", [2, 3, 4])
def test_steerable(tmp_path: Path, native_tap: bool, n_layer: int) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", n_layer=n_layer)
    llama = TappedLlama(str(path), native_tap=native_tap, **SETTINGS)
    assert steerable_layers(llama, "llama") == set(range(n_layer))
    # and nothing of it stays: no vector, no token
    plain = plain_llama(path)
    assert answer(llama, PROMPT) == answer(plain, PROMPT)
    np.testing.assert_array_equal(logits(llama), logits(plain))


def test_the_recurrent_model(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "mamba.gguf", "mamba")
    llama = steered_llama(path, profiles=[make_profile(path, gate="closed")])
    plain = plain_llama(path)
    assert answer(llama, PROMPT) == answer(plain, PROMPT)
    np.testing.assert_array_equal(logits(llama), logits(plain))


def test_an_architecture_without_layer_outputs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    monkeypatch.setattr(llama.tap, "arm", lambda handlers: None)
    with pytest.raises(SteeringError, match=r"shows no layer outputs \(l_out\) for architecture 'llama'"):
        llama.set_profiles([make_profile(tiny)])
    assert llama.profiles == ()


def test_an_architecture_that_ignores_control_vectors(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    monkeypatch.setattr(llama_cpp, "llama_set_adapter_cvec", lambda *_: 0)
    with pytest.raises(SteeringError, match="ignores control vectors for architecture 'llama'"):
        llama.set_profiles([make_profile(tiny)])
    assert llama.profiles == ()
    assert answer(llama, PROMPT) == answer(plain_llama(tiny), PROMPT)


def test_an_architecture_with_several_rows_a_token(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    monkeypatch.setattr(llama.tap, "_n_embd", lambda: 16)  # as Gemma 3n's four streams
    with pytest.raises(SteeringError, match="shows 4 rows a token for architecture 'llama'"):
        llama.set_profiles([make_profile(tiny)])
    monkeypatch.setattr(steered, "steerable_layers", lambda *_: {1, 2})
    llama.set_profiles([make_profile(tiny)])
    with pytest.raises(SteeringError, match="more rows than the prompt has tokens"):
        answer(llama, PROMPT, 1)


def test_it_is_asked_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(llama: TappedLlama, architecture: str) -> set[int]:
        asked.append(architecture)
        return {1, 2}

    monkeypatch.setattr(steered, "steerable_layers", ask)
    llama = steered_llama(tiny)
    assert asked == []
    for _ in range(2):
        llama.set_profiles([make_profile(tiny)])
        llama.set_profiles([])
    assert asked == ["llama"]


def test_a_failed_probe_is_tried_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(llama.tap, "arm", lambda handlers: None)
        with pytest.raises(SteeringError):
            llama.set_profiles([make_profile(tiny)])
    llama.set_profiles([make_profile(tiny)])
    answer(llama, PROMPT, 1)
    assert llama.last_decision.open


def test_a_layer_that_is_not_shown(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    arm = llama.tap.arm
    monkeypatch.setattr(llama.tap, "arm", lambda handlers: arm({n: h for n, h in handlers.items() if n != 2}))
    assert steerable_layers(llama, "llama") == {0, 1, 3}
    with pytest.raises(SteeringError, match="cannot steer layer 2 of architecture 'llama'"):
        llama.set_profiles([make_profile(tiny, layers=(2,))])
    llama.set_profiles([make_profile(tiny, layers=(1,))])


def test_a_layer_that_ignores_control_vectors(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)
    apply = probe.set_control_vector

    def all_but_layer_2(ctx: object, vectors: Vectors, **sizes: int) -> None:
        apply(ctx, {n: v * (n != 2) for n, v in vectors.items()}, **sizes)

    monkeypatch.setattr(probe, "set_control_vector", all_but_layer_2)
    assert 2 not in steerable_layers(llama, "llama")
