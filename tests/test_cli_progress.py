"""What a long run tells on the way."""

from __future__ import annotations

import pytest

from finesteer_local.cli import _progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.stages() as report:
        for done in range(1, 1601):
            report("reading prompts", done, 1600)
            clock[0] += 0.125
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading prompts: 481 of 1,600, 60 s",
        "reading prompts: 961 of 1,600, 120 s",
        "reading prompts: 1,441 of 1,600, 180 s",
        "reading prompts: 1,600, 200 s",
    ]


def test_what_is_over_soon_leaves_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.stages() as report:
        for stage in ("training experts", "training the gate"):
            for done in range(1, 5):
                report(stage, done, 4)
                clock[0] += 2
    assert capsys.readouterr().err == ""


def test_the_end_is_told_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A tuner's total is a guess: it stays at its end while it goes on."""
    with _progress.stages() as report:
        for done in (1, 2, 2, 2, 2):
            report("tuning", done, 2)
            clock[0] += 25
    assert capsys.readouterr().err.splitlines() == ["tuning: 2, 25 s", "tuning: 2, 100 s"]


def test_a_stage_without_a_total(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.stages() as report:
        for done in range(3):
            report("looking", done, 0)
            clock[0] += 61
    assert capsys.readouterr().err.splitlines() == ["looking: 1, 61 s", "looking: 2, 122 s"]
