"""How long training will take."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finesteer_local import training
from finesteer_local.errors import ModelError
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import estimate
from finesteer_local.training.data import Pair, Prompt, TrainingData
from tiny import write_tiny_model

N = 100


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads would wait for each other here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SteeredLlama:
    path = write_tiny_model(tmp_path_factory.mktemp("deep") / "deep.gguf", n_layer=8)
    return open_model(path, n_threads=1)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever the clock is looked at."""
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=count().__next__))


def data(judge: str = "refusal") -> TrainingData:
    def prompt(text: str) -> Prompt:
        return Prompt([{"role": "user", "content": text}])

    pairs = [Pair(prompt(f"! {i}"), f"no, {i}", f"sure, {i}") for i in range(N)]
    return TrainingData("some", pairs, [prompt(f"what is {i}?") for i in range(N)], judge=judge)


def test_of_the_safety_recipe(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "roomy.gguf", context_length=4096)
    assert 0 < training.estimate_seconds(model) < 10_000


def test_learning_through_the_model_is_opening_it_and_all_batches(llama: SteeredLlama, ticking: None) -> None:
    seconds = estimate._learning(llama, data())
    assert seconds is not None
    assert seconds - 1 == pytest.approx(0.8 * N / 8, rel=0.1)  # eight examples a batch, a fifth held out


def test_a_model_that_cannot_be_learnt_through(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights_of(llama: Any) -> Any:
        raise ModelError("transformers cannot read it")

    monkeypatch.setattr(estimate, "weights_of", weights_of)
    assert estimate._learning(llama, data()) is None


def test_only_what_training_does_is_counted(
    llama: SteeredLlama, ticking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning through the model for refusals; other recipes are not learnt so."""
    learnt: list[str] = []
    monkeypatch.setattr(estimate, "_learning", lambda llama, data: (learnt.append(data.judge), 1e6)[1])
    for judge in ("refusal", "margin"):
        monkeypatch.setattr(estimate, "load_recipe", lambda name, judge=judge: data(judge))
        assert (estimate.estimate_seconds(llama.model_path, "some", n_threads=1) > 1e6) == (judge == "refusal")
    assert learnt == ["refusal"]
