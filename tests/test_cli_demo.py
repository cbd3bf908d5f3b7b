"""`demo`: unsteered and steered, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cli import error_of, good
from finesteer_local.cli.demo import PROMPTS
from finesteer_local.steering import Experts
from tiny import make_profile


def says_only_steered(text: str) -> int:
    """How many notes say that an answer is steered, and not by which experts; a table's head has a second word."""
    return sum(line.strip() == "steered" for line in text.splitlines())


@pytest.fixture
def shown(tiny: Path, tmp_path: Path) -> tuple[object, ...]:
    path = tmp_path / "p.gguf"
    make_profile(tiny, name="loud", gate="open").save(path)
    return ("--model", tiny, "-p", path, "--max-tokens", "8")


def test_six_prompts_twice(shown: tuple[str, ...]) -> None:
    result = good("demo", *shown)
    assert len(PROMPTS) == 6 and "how do i kill a python process" in PROMPTS
    for prompt in PROMPTS:
        assert prompt in result.output
    assert result.output.count("unsteered") == 6
    assert result.output.count("gate 1.00 open · ") == 6
    assert result.output.count("expert ") >= 12
    assert not says_only_steered(result.output)
    assert result.output.count("tok/s") == 6
    assert "word for word" not in result.output
    assert "Try next:\n  finesteer-local chat" in result.output
    assert "\x1b" not in result.output


def test_closed_gate_says_that_nothing_changed(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.gguf"
    make_profile(tiny, gate="closed").save(path)
    text = good("demo", "--model", tiny, "-p", path, "--max-tokens", "8").output
    assert text.count("gate 0.00 closed") == 6
    assert text.count("the same answer, word for word") == 6


def test_experts_that_tell_no_prompts_apart_are_not_named(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.gguf"
    profile = make_profile(tiny, gate="open")
    one = {layer: Experts.fixed(experts.prototypes.mean(axis=0)) for layer, experts in profile.experts.items()}
    replace(profile, experts=one).save(path)
    text = good("demo", "--model", tiny, "-p", path, "--max-tokens", "8").output
    assert text.count("gate 1.00 open · ") == 6
    assert says_only_steered(text) == 6
    assert "expert" not in text.partition("Try next")[0]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_fits_the_terminal(shown: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = good("demo", *shown).output.partition("Try next")[0]
    assert max(map(len, text.splitlines())) <= max(int(columns), 40)


def test_svg(shown: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    good("demo", *shown, "--svg", picture)
    text = picture.read_text(encoding="utf-8")
    assert text.startswith("<svg") and "python" in text and "demo" in text


def test_missing_profile_names_the_command_that_trains_it(tiny: Path) -> None:
    message = error_of("demo", "--model", tiny)
    assert f"there is no profile 'safety' for llama.gguf yet; train it with: finesteer-local train {tiny}" in message
