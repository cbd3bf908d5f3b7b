"""Experts that are optimised through the model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import MissingExtraError, ModelError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.steering import AlwaysGate, Experts
from finesteer_local.training.data import Pair, Prompt
from finesteer_local.training.optimise import BATCH, optimise, weights_of
from tiny import write_tiny_model

LAYER = 1
SHARES = (0.75, 0.25)


@pytest.fixture(scope="module")
def llama(tiny: Path) -> SteeredLlama:
    return open_model(tiny, n_ctx=256, n_threads=1)


def pair(i: int) -> Pair:
    prompt = Prompt([{"role": "user", "content": f"Question {i}?"}], kind="facts")
    return Pair(prompt, chosen=f"Yes, {i} it is.", rejected=f"No, never {i}.")


def start(llama: SteeredLlama) -> Experts:
    fixed = Experts.fixed(np.zeros(llama.n_embd(), np.float32))
    prototypes = np.random.default_rng(0).normal(0, 0.01, (2, llama.n_embd())).astype(np.float32)
    bias = np.log(np.array(SHARES, np.float32))
    return replace(
        fixed,
        prototypes=prototypes,
        router_weight=np.zeros((llama.n_embd(), 2), np.float32),
        router_bias=bias,
        labels=("a", "b"),
    )


def margins(llama: SteeredLlama, pairs: list[Pair], experts: Experts) -> float:
    """Steered by llama.cpp, not by PyTorch."""
    profile = Profile(
        name="x",
        model=llama.identity,
        gate=AlwaysGate(),
        gate_layer=LAYER,
        experts={LAYER: experts},
        strength=1.0,
        scope="prompt",
        answer_strength=1.0,
    )
    llama.set_profiles([profile])
    total = 0.0
    for one in pairs:
        prompt = chat_prompt(llama, one.prompt.messages)
        answers = [llama.tokenize(text.encode(), add_bos=False) for text in (one.chosen, one.rejected)]
        chosen, rejected = answer_logprobs(llama, prompt, answers)
        total += float(chosen.sum() - rejected.sum())
    llama.set_profiles([])
    return total / len(pairs)


def test_chosen_answers_become_likelier(llama: SteeredLlama) -> None:
    model, before, seen = weights_of(llama), start(llama), []
    pairs = [pair(i) for i in range(3 * BATCH)]

    def run() -> Experts:
        return optimise(model, llama, pairs, before, SHARES, LAYER, seed=0, progress=lambda *at: seen.append(at))

    after = run()
    assert seen == [("optimising experts", i, 3) for i in (1, 2, 3)]
    held = [pair(i) for i in range(100, 104)]
    assert margins(llama, held, after) > margins(llama, held, before) + 1
    moved = after.prototypes - before.prototypes
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-6)  # together
    assert np.abs(moved).max() > 0.05
    assert (after.labels, after.router_bias.tolist()) == (before.labels, before.router_bias.tolist())
    assert np.array_equal(run().prototypes, after.prototypes)  # the same seed, and the model is as it was


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_weights_are_those_of_llama_cpp(architecture: str, tmp_path: Path) -> None:
    llama = open_model(write_tiny_model(tmp_path / "tiny.gguf", architecture), n_ctx=256, n_threads=1)
    assert len(weights_of(llama).get_decoder().layers) == llama.n_layer


def test_weights_that_are_others(llama: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", seed=5)
    monkeypatch.setattr(llama, "model_path", str(other))
    with pytest.raises(ModelError, match=r"does not compute what llama.cpp does .*; train without --optimise"):
        weights_of(llama)


def test_a_file_that_transformers_cannot_read(
    llama: SteeredLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "model_path", str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match=r"transformers cannot read .*none.gguf: .*; train without --optimise"):
        weights_of(llama)


@pytest.mark.parametrize("missing", ["accelerate", "transformers"])
def test_without_the_extra(missing: str, llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"needs transformers and accelerate; install with: pip install"):
        weights_of(llama)
