"""How long training will take, before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finesteer_local import training
from finesteer_local.errors import ModelError
from finesteer_local.training import estimate
from finesteer_local.training.effort import EFFORTS, SETTING_UP, Pace
from test_train import training_data
from tiny import write_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def paced(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """What is estimated where the machine's pace is this one."""

    def told(pace: Pace, **options: Any) -> float:
        monkeypatch.setattr(estimate, "load_recipe", lambda name: training_data())
        monkeypatch.setattr(Pace, "measured", lambda *_, **__: pace)
        return training.estimate_seconds(tiny, **options)

    return told


def test_of_the_safety_recipe(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "roomy.gguf", context_length=4096)
    assert 0 < training.estimate_seconds(model, n_threads=1) < 10_000


def test_no_longer_than_it_may_take_and_no_longer_than_it_needs(paced) -> None:
    quick = Pace(answer=1e-4, read=1e-4, lesson=0)
    assert paced(quick, minutes=10) < SETTING_UP + 2
    slow_to_read = Pace(answer=1e-4, read=60.0, lesson=0)
    assert paced(slow_to_read, minutes=5) >= 300  # so few prompts are read all the same
    assert paced(slow_to_read, minutes=1000) == pytest.approx(paced(slow_to_read, quality="full"))
    slow = Pace(answer=10.0, read=1e-3, lesson=0)
    assert paced(slow, minutes=1) > 60  # less cannot be done


def test_answers_that_are_watched_take_their_time(paced) -> None:
    pace = Pace(answer=0.1, read=0.01, lesson=0)
    watching = Pace(answer=0.1, read=0.01, lesson=0, watched=0.5)
    more = paced(watching, quality="full") - paced(pace, quality="full")
    assert more == pytest.approx(0.5 * EFFORTS["full"].watched)


def test_more_is_longer(paced) -> None:
    pace = Pace(answer=0.1, read=0.01, lesson=0)
    seconds = [paced(pace, quality=quality) for quality in EFFORTS]
    assert seconds == sorted(seconds) and len(set(seconds)) == len(EFFORTS)


def test_a_model_that_cannot_be_learnt_through(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights_of(llama: Any) -> Any:
        raise ModelError("transformers cannot read it")

    seen: list[Any] = []
    monkeypatch.setattr(estimate, "load_recipe", lambda name: training_data())
    monkeypatch.setattr(estimate, "learns_by_itself", lambda llama, judge: True)
    monkeypatch.setattr(estimate, "weights_of", weights_of)
    monkeypatch.setattr(Pace, "measured", lambda harvest, data, layer, weights, **_: (seen.append(weights), PACE)[1])
    assert training.estimate_seconds(tiny) > 0 and seen == [None]


PACE = Pace(answer=0.1, read=0.01, lesson=0)
