"""The beginning of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import run as module
from finesteer_local.training.data import Pair, Prompt, TrainingData
from finesteer_local.training.progress import Stopwatch, quiet
from finesteer_local.training.run import VECTORS, begin, candidate_layers
from finesteer_local.training.settings import TrainingSettings

N = 40


def prompt(text: str) -> Prompt:
    return Prompt([{"role": "user", "content": text}])


DATA = TrainingData(
    "some",
    [Pair(prompt(f"! {i}"), f"no, {i}", f"sure, {i}") for i in range(N)],
    [prompt(f"what is {i}?") for i in range(N)],
)


@pytest.fixture
def llama(tiny: Path) -> SteeredLlama:
    return open_model(tiny, n_threads=1)


def test_layers_by_the_depth() -> None:
    assert candidate_layers(30, "refusal", learns=False) == [13, 14]
    assert candidate_layers(30, "refusal", learns=True) == [13, 17, 21]
    assert candidate_layers(30, "margin", learns=False) == [8, 11, 13, 14]
    assert candidate_layers(3, "margin", learns=False) == [1]
    assert candidate_layers(30, "margin", learns=True, layer=28) == [28]
    with pytest.raises(DataError, match="layer 29 cannot be steered; this model allows 1 to 28"):
        candidate_layers(30, "margin", learns=False, layer=29)


@pytest.mark.parametrize("optimise", [False, True])
def test_weights_are_opened_where_there_is_something_to_learn_through_them(
    llama: SteeredLlama, optimise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once only: an interrupted run that has its vectors goes on without."""
    opened: list[SteeredLlama] = []
    monkeypatch.setattr(module, "weights_of", lambda llama: (opened.append(llama), "weights")[1])
    settings = TrainingSettings(optimise=optimise, quality="full")
    run, weights = begin(llama, DATA, settings, quiet)
    assert (run.learns, weights, opened) == ((True, "weights", [llama]) if optimise else (False, None, []))
    (run.folder / VECTORS).write_bytes(b"")
    again, weights = begin(llama, DATA, settings, quiet)
    assert (again.folder, again.learns, weights, len(opened)) == (run.folder, optimise, None, optimise)


def test_nothing_is_read_for_a_run_that_cannot_be(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights_of(llama: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(module, "weights_of", weights_of)
    for data, settings in ((replace(DATA, contrast=[]), TrainingSettings()), (DATA, TrainingSettings(layer=99))):
        with pytest.raises(DataError):
            begin(llama, data, replace(settings, optimise=True), quiet)


def test_a_stopwatch_adds_up_what_stages_take(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 3.5, 7.0])
    monkeypatch.setattr("finesteer_local.training.progress.time.monotonic", lambda: next(times))
    seen: list[tuple[str, int, int]] = []
    watch = Stopwatch(lambda *step: seen.append(step))
    for stage in ("reading", "tuning", "reading"):
        watch(stage, 1, 2)
    assert watch.stages == {"reading": 1.5, "tuning": 2.0} and [*watch.stages] == ["reading", "tuning"]
    assert watch.seconds == 7.0
    assert seen == [("reading", 1, 2), ("tuning", 1, 2), ("reading", 1, 2)]
