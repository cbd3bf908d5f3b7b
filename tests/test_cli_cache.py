"""`cache`: show, clear."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import error_of, good
from finesteer_local import state_cache
from finesteer_local.runtime.cached_harvest import read_states
from finesteer_local.runtime.packing import StatesRequest
from reference import steered_llama


def test_show_and_clear(tiny: Path, home: Path) -> None:
    assert good("cache").output == f"0 kB of at most 4.0 GB in {home / 'cache' / 'states'}\n"
    read_states(steered_llama(tiny), [StatesRequest([5, 6, 7], 1), StatesRequest([5, 6, 8], 1)], [1, 2])
    text = good("cache").output
    assert good("cache", "show").output == text
    lines = text.splitlines()
    assert lines[0].split() == ["MODEL", "LAYER", "PROMPTS", "SIZE", "LAST", "USED"]
    assert sorted(line.split()[:3] for line in lines[1:3]) == [["llama.gguf", "1", "2"], ["llama.gguf", "2", "2"]]
    told = json.loads(good("cache", "show", "--json").output)
    assert told["limit"] == 4_000_000_000 and told["folder"] == str(state_cache.folder())
    assert sorted((row["model"], row["layer"], row["n_prompts"]) for row in told["kept"]) == [
        ("llama.gguf", 1, 2),
        ("llama.gguf", 2, 2),
    ]
    assert told["bytes"] == sum(row["n_bytes"] for row in told["kept"]) > 0
    assert good("cache", "clear").output == "freed 2 kB\n"
    assert json.loads(good("cache", "show", "--json").output)["kept"] == []


def test_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESTEER_CACHE_GB", "many")
    assert "give the gigabytes to keep as a number" in error_of("cache")
