"""`--skip-thinking`: with a template that opens thoughts, and a model that never ends them, nothing is steered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import error_of, good
from templates import R1
from tiny import make_profile, write_tiny_model


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model = write_tiny_model(tmp_path / "r1.gguf", chat_template=R1)
    profile = tmp_path / "firm.gguf"
    make_profile(model, name="firm", scope="response", strength=2.0).save(profile)
    return model, profile


def test_run(files: tuple[Path, Path]) -> None:
    model, profile = files
    arguments = ("run", model, "Hello", "--max-tokens", "8", "--threads", "1")
    plain, steered, skipped = (
        good(*arguments, *more).stdout for more in ((), ("-p", profile), ("-p", profile, "--skip-thinking"))
    )
    assert plain == skipped != steered


def test_run_rows(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, profile = files
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Hello"}), encoding="utf-8")
    arguments = ("run", model, "--jsonl", rows, "--max-tokens", "8", "--threads", "1")
    plain, steered, skipped = (
        json.loads(good(*arguments, *more).stdout)["answer"]
        for more in ((), ("-p", profile), ("-p", profile, "--skip-thinking"))
    )
    assert plain == skipped != steered


def test_chat(files: tuple[Path, Path]) -> None:
    model, profile = files
    arguments = ("chat", model, "--temperature", "0", "--max-tokens", "8", "--threads", "1")
    plain, steered, skipped = (
        good(*arguments, *more, stdin="Hello\n").stdout
        for more in ((), ("-p", profile), ("-p", profile, "--skip-thinking"))
    )
    assert plain == skipped != steered


@pytest.mark.parametrize("command", ["eval", "bench", "train", "doctor"])
def test_others_do_not_have_it(command: str, tmp_path: Path) -> None:
    assert "No such option" in error_of(command, tmp_path / "none.gguf", "--skip-thinking", code=2)
