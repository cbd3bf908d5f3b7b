"""The beginning of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError, ModelError
from finesteer_local.runtime import SteeredLlama, open_model
from finesteer_local.training import run as module
from finesteer_local.training.data import PAGE, Pair, Prompt, TrainingData
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


def test_what_answers_is_the_faster_of_two(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are opened serve learning and answering; where nothing is learnt, only where it may be worth it."""
    opened: list[SteeredLlama] = []
    asked: list[tuple[Any, Any, int]] = []

    def faster(llama: Any, weights: Any, prompts: list[Any]) -> Any:
        asked.append((llama, weights, len(prompts)))
        return "engine"

    monkeypatch.setattr(module, "faster_engine", faster)
    monkeypatch.setattr(module, "weights_of", lambda llama: (opened.append(llama), "weights")[1])
    for optimise, worth in ((True, True), (True, False), (False, True), (False, False)):
        opened.clear()
        monkeypatch.setattr(module, "worth_opening", lambda llama, worth=worth: worth)
        run, weights = begin(llama, DATA, TrainingSettings(optimise=optimise, quality="full"), quiet)
        assert run.model_data.answering == "engine" and run.llama is llama
        assert weights == ("weights" if optimise else None) and len(opened) == (optimise or worth)
        assert asked.pop() == (llama, "weights" if opened else None, module.TIMED)
    (run.folder.parent / "other").mkdir()  # what was learnt with another effort
    (run.folder.parent / "other" / VECTORS).write_bytes(b"")
    monkeypatch.setattr(module, "worth_opening", lambda llama: True)
    opened.clear()
    run, weights = begin(llama, DATA, TrainingSettings(optimise=True, quality="full"), quiet)
    assert weights == "weights" and len(opened) == 1


def test_weights_that_cannot_be_read_answer_nothing(llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights_of(llama: Any) -> Any:
        raise ModelError("transformers cannot read it")

    monkeypatch.setattr(module, "weights_of", weights_of)
    monkeypatch.setattr(module, "worth_opening", lambda llama: True)
    run, weights = begin(llama, DATA, TrainingSettings(optimise=False, quality="full"), quiet)
    assert run.model_data.answering is llama and weights is None


def test_pages_without_room_are_not_asked_either(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Prompt([{"role": "user", "content": "x " * 400}], form=PAGE)
    data = replace(DATA, pairs=[Pair(page, "no", "yes"), *DATA.pairs])
    asked: list[Any] = []
    monkeypatch.setattr(module, "faster_engine", lambda llama, weights, prompts: (asked.extend(prompts), llama)[1])
    begin(open_model(tiny, n_ctx=256, n_threads=1), data, TrainingSettings(optimise=False, quality="full"), quiet)
    assert len(asked) == module.TIMED and page.messages not in asked


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
