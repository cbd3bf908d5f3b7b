"""As many prompts as there is time for, in an order of which any beginning is good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finesteer_local.runtime import open_model
from finesteer_local.training import effort
from finesteer_local.training import gate_data as module
from finesteer_local.training.data import Prompt, TrainingData
from finesteer_local.training.effort import Deadline
from finesteer_local.training.gate_data import GateData, read_for_gate
from finesteer_local.training.model_data import ModelData, Turns
from test_train import training_data

LAYER = 1


@pytest.fixture
def data() -> TrainingData:
    return training_data()


@pytest.fixture
def model_data(tiny: Path, data: TrainingData, tmp_path: Path) -> ModelData:
    return ModelData(open_model(tiny, n_threads=1), data, tmp_path / "run")


class Clock(Deadline):
    """A deadline of which a portion takes a second."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.seconds = seconds
        monkeypatch.setattr(effort.time, "monotonic", lambda: self.now)

    @property
    def left(self) -> float:
        return self.seconds - self.now


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def same_states(found: GateData, model_data: ModelData) -> None:
    """Each prompt has its own."""
    wanted = model_data.turns(found.prompts, LAYER)
    assert len(found.turns) == len(found.prompts)
    for i in range(len(found.prompts)):
        assert np.array_equal(found.turns[i], wanted[i])


def test_everything_where_there_is_time(model_data: ModelData, data: TrainingData) -> None:
    found = read_for_gate(model_data, data, LAYER, Deadline(None), keep=False)
    assert sorted(texts(found.positive)) == sorted(texts(data.positive))
    assert sorted(texts(found.contrast)) == sorted(texts(list(data.contrast)))
    same_states(found, model_data)


@pytest.mark.parametrize("seconds", [1.0, 2.5, 5.5, 1000.0])
def test_what_fits_into_the_time(
    model_data: ModelData, data: TrainingData, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(module, "PORTION", 10)
    monkeypatch.setattr(module, "MIN_PROMPTS", 20)
    monkeypatch.setattr(effort, "FIT_SECONDS", 0.0)
    clock = Clock(seconds, monkeypatch)
    turns = ModelData.turns

    def slowly(*args, **options) -> Turns:
        found = turns(*args, **options)
        clock.now += 1.0
        return found

    monkeypatch.setattr(ModelData, "turns", slowly)
    found = read_for_gate(model_data, data, LAYER, clock, keep=False)
    monkeypatch.setattr(ModelData, "turns", turns)
    everything = len(data.positive) + len(data.contrast)
    assert len(found.prompts) == min(max(int(seconds) * 10, 20), everything)
    n = len(found.prompts)
    assert texts(found.prompts) != [] and set(texts(found.prompts)) == {p.text for _, p in data.ordered[:n]}
    if n < 2 * min(len(data.positive), len(data.contrast)):
        assert len(found.positive) == len(found.contrast) == n / 2
    same_states(found, model_data)


def test_fitting_needs_its_time_too(model_data: ModelData, data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTION", 10)
    monkeypatch.setattr(module, "MIN_PROMPTS", 10)
    monkeypatch.setattr(effort, "FIT_SECONDS", 0.1)
    found = read_for_gate(model_data, data, LAYER, Clock(4.0, monkeypatch), keep=False)  # reading takes no time at all
    assert len(found.prompts) == 40


@pytest.mark.parametrize("keep", [True, False])
def test_an_interruption_may_keep_what_was_read(
    model_data: ModelData, data: TrainingData, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(module, "PORTION", 10)
    monkeypatch.setattr(module, "MIN_PROMPTS", 20)
    read: list[int] = []

    def interrupted(stage: str, done: int, total: int) -> None:
        read.append(done)
        if done == 35:
            raise KeyboardInterrupt

    model_data.progress = interrupted
    if not keep:
        with pytest.raises(KeyboardInterrupt):
            read_for_gate(model_data, data, LAYER, Deadline(None), keep=False)
        return
    found = read_for_gate(model_data, data, LAYER, Deadline(None), keep=True)
    assert len(found.prompts) == 30
    model_data.progress = lambda *_: None
    same_states(found, model_data)


def test_too_little_is_not_kept(model_data: ModelData, data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTION", 10)

    def interrupted(stage: str, done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    model_data.progress = interrupted
    with pytest.raises(KeyboardInterrupt):
        read_for_gate(model_data, data, LAYER, Deadline(None), keep=True)
