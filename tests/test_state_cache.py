"""The folder of kept states: what is in it, what goes first, what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finesteer_local import state_cache
from finesteer_local.errors import DataError


def segment(folder: str, name: str, n_bytes: int, age: float, *, finished: bool = True) -> list[Path]:
    place = state_cache.folder() / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / state_cache.ABOUT).write_text('{"model": "m.gguf", "layer": 3, "kind": "float16"}')
    made = [place / f"{name}.npy", place / f"{name}{state_cache.INDEX}"]
    if not finished:
        made = [place / f"{name}.part", place / f"{name}.done"]
    made[0].write_bytes(b"x" * n_bytes)
    made[1].write_bytes(b"y" * 3 * state_cache.RECORD)
    now = made[0].stat().st_mtime
    for path in made:
        os.utime(path, (now - age, now - age))
    return made


def test_what_is_kept() -> None:
    assert state_cache.kept() == []
    segment("a", "one", 1000, 50)
    segment("a", "two", 500, 10)
    segment("b", "one", 100, 500)
    (state_cache.folder() / "b" / state_cache.ABOUT).write_text("{")
    first, second = state_cache.kept()
    assert (first.model, first.layer, first.kind, first.n_prompts) == ("m.gguf", 3, "float16", 4)
    assert first.n_bytes == 1500 + 2 * 72
    assert (second.model, second.n_prompts) == ("damaged", 2)


def test_the_longest_unused_go_until_the_rest_fits() -> None:
    old, middle, new = (segment("a", name, 1000, age) for name, age in (("o", 90), ("m", 60), ("n", 30)))
    assert state_cache.trim(10_000) == 0
    assert state_cache.trim(2500) == 1072
    assert not any(path.exists() for path in old) and all(path.exists() for path in [*middle, *new])
    assert state_cache.trim(0) == 2144
    assert state_cache.kept() == []


def test_what_was_just_used_is_not_deleted_for_something_else() -> None:
    old, new = (segment("a", name, 1000, age) for name, age in (("o", 7 * 3600), ("n", 60)))
    assert state_cache.trim(1, spare=state_cache.IN_USE) == 1072
    assert not any(path.exists() for path in old) and all(path.exists() for path in new)
    assert state_cache.trim(0, spare=state_cache.IN_USE) == 1072  # nothing may be kept: not even that


def test_what_another_process_is_writing_is_let_alone() -> None:
    """It has a name that begins with a dot until it is whole."""
    files = segment("a", "one", 1000, 50)
    writing = files[0].with_name(".one.index.123")
    writing.write_bytes(b"half")
    assert state_cache.trim(0) == 1072 and writing.exists()
    assert not any(path.exists() for path in files)


def test_an_unfinished_harvest_is_left_alone_for_days() -> None:
    fresh = segment("a", "f", 1000, 3600, finished=False)
    stale = segment("a", "s", 1000, 10 * 86400, finished=False)
    assert state_cache.trim(0) == 1072
    assert all(path.exists() for path in fresh) and not any(path.exists() for path in stale)


def test_clearing() -> None:
    segment("a", "o", 1000, 1)
    segment("b", "f", 10, 1, finished=False)
    assert state_cache.clear() > 1154
    assert not state_cache.folder().exists()
    assert state_cache.clear() == 0


@pytest.mark.parametrize(("text", "n_bytes"), [("", 4_000_000_000), ("0", 0), ("1.5", 1_500_000_000), ("-1", 0)])
def test_the_limit(monkeypatch: pytest.MonkeyPatch, text: str, n_bytes: int) -> None:
    monkeypatch.setenv("FINESTEER_CACHE_GB", text)
    assert state_cache.limit() == n_bytes


def test_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESTEER_CACHE_GB", "lots")
    with pytest.raises(DataError, match="'lots'; give the gigabytes"):
        state_cache.limit()
