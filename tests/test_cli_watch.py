"""`run` and `chat` with profiles that read answers: what they do, and what they say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli import error_of, good
from finesteer_local.cli._view import answer_words
from finesteer_local.steering import AnswerReading, Decision
from test_steered_watch import FIRST, held_open, watching
from tiny import make_profile

ARGUMENTS = ("hello", "--max-tokens", "8")


@pytest.fixture
def profile(tiny: Path, tmp_path: Path) -> Path:
    watching(tiny).save(tmp_path / "watches.gguf")
    return tmp_path / "watches.gguf"


@pytest.fixture
def steered(tiny: Path, tmp_path: Path) -> Path:
    replace(held_open(watching(tiny))).save(tmp_path / "open.gguf")
    return tmp_path / "open.gguf"


def test_an_answer_is_taken_back_and_told(tiny: Path, profile: Path, steered: Path) -> None:
    found = good("run", tiny, *ARGUMENTS, "-p", profile, "--explain")
    assert found.stdout == good("run", tiny, *ARGUMENTS, "-p", steered).stdout
    assert f"shown by the answer at token {FIRST}, {FIRST} tokens taken back, steered from there" in found.stderr
    told = json.loads(good("run", tiny, *ARGUMENTS, "-p", profile, "--json").stdout)
    assert told["answer"] + "\n" == found.stdout
    assert told["decisions"][0]["answer"]["taken_back"] == FIRST


def test_what_may_be_done_instead(tiny: Path, profile: Path) -> None:
    plain = good("run", tiny, *ARGUMENTS).stdout
    for action in ("report", "off"):
        assert good("run", tiny, *ARGUMENTS, "-p", profile, "--on-answer", action).stdout == plain
    stopped = good("run", tiny, *ARGUMENTS, "-p", profile, "--on-answer", "stop", "--explain")
    assert stopped.stdout == "\n" and "ended: the answer showed" in stopped.stderr
    out = good("run", tiny, *ARGUMENTS, "-p", profile, "--look-ahead", "0").stdout
    assert out[:FIRST] == plain[:FIRST] and out != plain


def test_why(tiny: Path, profile: Path) -> None:
    found = good("chat", tiny, "-p", profile, "--max-tokens", "8", stdin="hello\n/why\n")
    assert f"shown by the answer at token {FIRST}" in found.stdout + found.stderr
    quiet = good("chat", tiny, "-p", profile, "--max-tokens", "8", "--on-answer", "off", stdin="hello\n/why\n")
    assert "shown by the answer" not in quiet.stdout + quiet.stderr


def test_what_cannot_be_asked_for(tiny: Path, tmp_path: Path) -> None:
    make_profile(tiny).save(tmp_path / "p.gguf")
    assert "does not read answers" in error_of(
        "run", tiny, *ARGUMENTS, "-p", tmp_path / "p.gguf", "--on-answer", "stop"
    )
    assert "erase" in error_of("run", tiny, *ARGUMENTS, "--on-answer", "erase", code=2)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (None, ""),
        (AnswerReading("rewind", 1.0, 0.5), ""),
        (AnswerReading("rewind", 1.0, 2.0, 9, 1), "at token 9, 1 token taken back, steered from there"),
        (AnswerReading("rewind", 1.0, 2.0, 9, 0), "at token 9, steered from there"),
        (AnswerReading("steer", 1.0, 2.0, 9), "at token 9, steered from there"),
        (AnswerReading("stop", 1.0, 2.0, 9, 4), "at token 9, ended"),
        (AnswerReading("report", 1.0, 2.0, 9), "at token 9, reported only"),
    ],
)
def test_words(reading: AnswerReading | None, words: str) -> None:
    decision = Decision("p", 0.0, 0.0, 1.0, 1.0, "turn", answer=reading)
    assert answer_words(decision) == (f"shown by the answer {words}" if words else "")
