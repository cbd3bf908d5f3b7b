"""`models`: list, pull, rm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import error_of, good
from finesteer_local import catalog
from finesteer_local.cli.models import size
from finesteer_local.errors import DownloadError


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has no other program's models."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))


def test_list(home: Path) -> None:
    text = good("models").output
    for word in ("NOT HERE YET", "smollm2", "98 MB", "Apache-2.0", "gemma3-270m", str(home / "cache" / "models")):
        assert word in text, word
    assert good("models", "list").output == text


def test_own_files_have_their_name(home: Path, tiny: Path) -> None:
    folder = home / "cache" / "models"
    folder.mkdir(parents=True)
    (folder / "mine.gguf").symlink_to(tiny)
    assert "mine" in good("models").output.partition("NOT HERE YET")[0]
    rows = {row["name"]: row for row in json.loads(good("models", "list", "--json").output)}
    assert rows["mine"]["path"] == str(folder / "mine.gguf")
    assert (rows["mine"]["source"], rows["mine"]["quantisation"], rows["mine"]["steerable"]) == (
        "models folder",
        "F32",
        True,
    )
    assert rows["smollm2"]["path"] is None
    assert good("run", "mine", "hello", "--max-tokens", "4").stdout
    assert good("models", "rm", "mine").output == f"removed {folder / 'mine.gguf'}\n"
    assert "unknown model 'mine'" in error_of("models", "rm", "mine")


def test_pull(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pull(name: str, report: object, note: object) -> Path:
        assert callable(report) and callable(note)
        report(50, 100)
        return tmp_path / f"{name}.gguf"

    monkeypatch.setattr(catalog, "pull_model", pull)
    result = good("models", "pull", "smollm2")
    assert result.stdout == f"{tmp_path / 'smollm2.gguf'}\n"
    assert result.stderr == ""  # quiet where nobody watches


def test_pull_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(*_: object) -> Path:
        raise DownloadError("cannot pull smollm2: stopped half-way; try again")

    monkeypatch.setattr(catalog, "pull_model", pull)
    assert "stopped half-way" in error_of("models", "pull", "smollm2")


def test_mistakes() -> None:
    assert "unknown model 'smolm'; did you mean smollm2" in error_of("models", "pull", "smolm")
    assert "'smollm2' is not installed" in error_of("models", "rm", "smollm2")
    assert "remove it with the program that keeps it" in error_of("models", "rm", "ollama:llama3.2")


@pytest.mark.parametrize(
    ("n", "text"), [(180_000, "180 kB"), (1_500_000, "1.5 MB"), (98_362_432, "98 MB"), (4_700_000_000, "4.7 GB")]
)
def test_size(n: int, text: str) -> None:
    assert size(n) == text
