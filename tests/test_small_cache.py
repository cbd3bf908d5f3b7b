"""Small answers in a JSON file of the cache."""

from __future__ import annotations

import json

import pytest

from finesteer_local import paths, small_cache
from finesteer_local.errors import StorageError
from finesteer_local.small_cache import SmallCache


def test_what_was_kept_is_there_again() -> None:
    assert SmallCache("a.json").get("x") is None
    SmallCache("a.json").keep("x", [1, {"y": False}])
    SmallCache("a.json").keep("z", False)
    assert SmallCache("a.json").get("x") == [1, {"y": False}] and SmallCache("a.json").get("z") is False
    assert SmallCache("b.json").get("x") is None
    assert [path.name for path in paths.cache_dir().iterdir()] == ["a.json"]


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_cache, "LIMIT", 3)
    cache = SmallCache("a.json")
    for i in (*range(5), 3):
        cache.keep(str(i), i)
    assert json.loads((paths.cache_dir() / "a.json").read_text()) == {"2": 2, "4": 4, "3": 3}


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "\udcff"])
def test_a_damaged_file_is_replaced(text: str) -> None:
    paths.cache_dir().mkdir(parents=True)
    (paths.cache_dir() / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    cache = SmallCache("a.json")
    assert cache.get("x") is None
    cache.keep("x", 1)
    assert cache.get("x") == 1


def test_what_cannot_be_written_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(paths, "atomic_write", full)
    SmallCache("a.json").keep("x", 1)
    assert SmallCache("a.json").get("x") is None
