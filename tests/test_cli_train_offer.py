"""`chat` with a profile that has a recipe but is not trained yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import call, error_of, terminal
from finesteer_local import catalog, training
from finesteer_local.cli import _open
from finesteer_local.errors import MissingExtraError
from finesteer_local.identity import read_model_identity
from tiny import make_profile


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training replaced by a random profile; what was asked for is written down."""
    asked: list[str] = []

    def train_profile(model: Path, *, recipe: str, progress: Callable[[str, int, int], None], **_: Any) -> Any:
        asked.append(recipe)
        for done in range(3):
            progress("harvesting", done, 2)
        return make_profile(model, name=recipe, gate="open")

    monkeypatch.setattr(training, "require_extra", lambda: None, raising=False)
    monkeypatch.setattr(training, "estimate_seconds", lambda model, recipe, **options: 340.0, raising=False)
    monkeypatch.setattr(training, "train_profile", train_profile, raising=False)
    return asked


def test_yes_trains_keeps_and_goes_on(tiny: Path, trained: list[str]) -> None:
    arguments = ("chat", tiny, "-p", "safety", "--max-tokens", "4")
    result = call(*arguments, "--yes", stdin="hello\n")
    assert result.exit_code == 0, result.stderr
    assert trained == ["safety"]
    assert "llama.gguf has no profile 'safety' yet. Training takes about 6 minutes, once." in result.stderr
    assert "safety · gate 1.00 open" in result.stderr
    (kept,) = catalog.available_profiles(read_model_identity(tiny).fingerprint)
    assert (kept.name, kept.bundled) == ("safety", False)
    assert str(kept.path) in result.stderr

    again = call(*arguments, stdin="hello\n")
    assert again.exit_code == 0 and trained == ["safety"]


def test_without_a_terminal_nobody_can_agree(tiny: Path, trained: list[str]) -> None:
    message = error_of("chat", tiny, "-p", "safety", stdin="hello\n")
    assert message == (
        "Error: there is no profile 'safety' for llama.gguf yet; add --yes to train it now, "
        f"or train it with: finesteer-local train {tiny} --recipe safety"
    )
    assert trained == []


@pytest.mark.parametrize(("reply", "asked"), [("n", []), ("", ["safety"])])
def test_at_a_terminal_it_asks(
    tiny: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, reply: str, asked: list[str]
) -> None:
    monkeypatch.setattr(_open, "_somebody_can_answer", lambda: True)
    result = call("chat", tiny, "-p", "safety", "--max-tokens", "4", stdin=f"{reply}\n")
    assert "Train it now? [Y/n]" in result.stderr
    assert trained == asked
    assert (result.exit_code == 0) == bool(asked)
    assert ("no profile 'safety'; leave out --profile" in result.stderr) != bool(asked)


def test_missing_extra_names_the_command(tiny: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtraError("training needs more packages; install them with: pip install '.[train]'")

    monkeypatch.setattr(training, "require_extra", missing)
    assert "pip install '.[train]'" in error_of("chat", tiny, "-p", "safety", "--yes", stdin="")
    assert trained == []


def test_names_without_a_recipe_are_not_offered(tiny: Path, trained: list[str]) -> None:
    assert "unknown profile 'xyzzy'" in error_of("chat", tiny, "-p", "xyzzy", "--yes", stdin="")
    assert trained == []


def test_the_question_at_a_real_terminal(tiny: Path) -> None:
    with terminal("run", tiny, "hello", "-p", "safety") as screen:
        assert screen.exit_code() == 1
        assert "train it with" in " ".join(screen.seen.split())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2, "about 5 seconds"),
        (38, "about 40 seconds"),
        (60, "about a minute"),
        (340, "about 6 minutes"),
        (9000, "about 2 hours"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert _open.duration(seconds) == text
