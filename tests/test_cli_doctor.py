"""`doctor`: printed, as JSON, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import call, error_of, good
from tiny import make_profile, write_tiny_model


def test_the_installation() -> None:
    text = good("doctor").output
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["versions", "llama.cpp", "files"]
    assert "✓ llama-cpp-python: 0.3" in text and "device CPU: processor: " in text
    told = json.loads(good("doctor", "--json").output)
    assert told["works"] is True
    assert {finding["topic"] for finding in told["findings"]} == {"versions", "llama.cpp", "files"}
    assert {*told["findings"][0]} == {"topic", "name", "says", "state", "remedy", "data"}


def test_a_model_and_its_profile(tiny: Path, tmp_path: Path) -> None:
    make_profile(tiny).save(tmp_path / "p.gguf")
    told = json.loads(good("doctor", tiny, "-p", tmp_path / "p.gguf", "--ctx", "256", "--json").output)
    names = [finding["name"] for finding in told["findings"] if finding["topic"] in ("model", "steering")]
    assert names == [
        *("file", "opens", "layers", "memory", "chat template"),
        *("tap and control vector", "answers", "profile p.gguf"),
    ]


def test_what_is_broken_ends_with_1_and_a_remedy(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_profile(write_tiny_model(tmp_path / "other.gguf", nudge=0.5)).save(tmp_path / "p.gguf")
    result = call("doctor", tiny, "-p", tmp_path / "p.gguf")
    assert result.exit_code == 1
    assert "✗ profile p.gguf: does not fit" in result.output and "→ profile 'test' was trained for" in result.output
    result = call("doctor", "smolm", "--json")
    assert result.exit_code == 1
    told = json.loads(result.output)
    assert told["works"] is False and "did you mean smollm2" in told["findings"][-1]["remedy"]


def test_nothing_is_opened_without_llama_cpp(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "finesteer_local.runtime.machine", None)
    result = call("doctor", tiny)
    assert result.exit_code == 1 and "✗ loads: no" in result.output
    assert "model\n" not in result.output


def test_wrong_usage() -> None:
    assert "--profile needs a MODEL" in error_of("doctor", "-p", "safety", code=2)
