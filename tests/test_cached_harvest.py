"""Hidden states are read once, found again by their tokens, and never trusted when their file is damaged."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from finesteer_local import state_cache
from finesteer_local.errors import DataError, StorageError
from finesteer_local.runtime import cached_harvest as module
from finesteer_local.runtime.cached_harvest import Harvest, read_states
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import StatesRequest
from reference import steered_llama
from tiny import write_tiny_model

RNG = np.random.default_rng(3)
START = RNG.integers(3, 250, 12).tolist()
REQUESTS = [StatesRequest([*START, *RNG.integers(3, 250, n).tolist()], 12 + n // 2) for n in range(2, 22)]


@pytest.fixture
def read_by_model(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each harvest gets."""
    seen: list[int] = []
    harvest = Harvester.harvest

    def spy(self: Harvester, requests: list[StatesRequest], *args: object) -> object:
        seen.append(len(requests))
        return harvest(self, requests, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Harvester, "harvest", spy)
    return seen


def same(a: Harvest, b: Harvest) -> None:
    np.testing.assert_array_equal(a.offsets, b.offsets)
    assert a.states.keys() == b.states.keys()
    for layer in a.states:
        np.testing.assert_array_equal(a.states[layer], b.states[layer])


def files(ending: str = "") -> list[Path]:
    return sorted(path for path in state_cache.folder().rglob("*" + ending) if path.is_file())


def test_states_are_those_of_the_harvester(tiny: Path) -> None:
    llama = steered_llama(tiny)
    got = read_states(llama, REQUESTS, [2, 1], kind=np.float32)
    assert list(got.states) == [2, 1] and got.offsets.dtype == np.int64
    for i, states in Harvester(llama, [1, 2]).harvest(REQUESTS):
        part = slice(got.offsets[i], got.offsets[i + 1])
        np.testing.assert_array_equal(got.states[1][part], states[0])
        np.testing.assert_array_equal(got.states[2][part], states[1])
    half = read_states(llama, REQUESTS, [1])
    assert half.states[1].dtype == np.float16
    np.testing.assert_array_equal(half.states[1], got.states[1].astype(np.float16))


def test_nothing_is_read_twice(tiny: Path, read_by_model: list[int]) -> None:
    first = read_states(steered_llama(tiny), REQUESTS, [1, 2])
    assert read_by_model == [20]
    same(read_states(steered_llama(tiny), REQUESTS, [1, 2]), first)
    assert read_by_model == [20]
    one = read_states(steered_llama(tiny), REQUESTS, [2])
    np.testing.assert_array_equal(one.states[2], first.states[2])
    some = read_states(steered_llama(tiny), REQUESTS[5:9][::-1], [1])
    at = [slice(first.offsets[i], first.offsets[i + 1]) for i in (8, 7, 6, 5)]
    np.testing.assert_array_equal(some.states[1], np.concatenate([first.states[1][part] for part in at]))
    later = read_states(steered_llama(tiny), [StatesRequest(r.tokens, len(r.tokens) - 1) for r in REQUESTS], [1])
    np.testing.assert_array_equal(later.states[1], first.states[1][first.offsets[1:] - 1])
    assert read_by_model == [20]
    read_states(steered_llama(tiny), [StatesRequest(REQUESTS[0].tokens, 0)], [1])  # more of it than is there
    read_states(steered_llama(tiny), REQUESTS, [3])
    read_states(steered_llama(tiny), REQUESTS, [1], kind=np.float32)
    assert read_by_model == [20, 1, 20, 20]


def test_only_what_is_missing_is_read(tiny: Path, read_by_model: list[int]) -> None:
    old, new = REQUESTS[::2], [*REQUESTS, REQUESTS[3], REQUESTS[4]]
    first = read_states(steered_llama(tiny), old, [1])
    second = read_states(steered_llama(tiny), new, [1])
    assert read_by_model == [10, 10]
    ends = np.cumsum([len(r.tokens) - r.first for r in new])
    np.testing.assert_array_equal(second.offsets[1:], ends)
    for i in range(10):
        part = slice(second.offsets[2 * i], second.offsets[2 * i + 1])
        np.testing.assert_array_equal(second.states[1][part], first.states[1][first.offsets[i] : first.offsets[i + 1]])
    twice = [slice(second.offsets[i], second.offsets[i + 1]) for i in (3, 20)]
    np.testing.assert_array_equal(second.states[1][twice[0]], second.states[1][twice[1]])


def test_other_models_have_other_states(tiny: Path, tmp_path: Path, read_by_model: list[int]) -> None:
    first = read_states(steered_llama(tiny), REQUESTS, [1])
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(tiny.read_bytes())
    same(read_states(steered_llama(copy), REQUESTS, [1]), first)
    assert read_by_model == [20]  # the content counts, not the name
    quantised = write_tiny_model(tmp_path / "half.gguf", weight_type=np.float16)  # the same fingerprint
    assert not np.array_equal(read_states(steered_llama(quantised), REQUESTS, [1]).states[1], first.states[1])
    fine_tune = write_tiny_model(tmp_path / "tune.gguf", nudge=0.1)
    assert not np.array_equal(read_states(steered_llama(fine_tune), REQUESTS, [1]).states[1], first.states[1])
    read_states(steered_llama(tiny, rope_freq_base=5e3), REQUESTS, [1])
    assert read_by_model == [20] * 4


@pytest.mark.parametrize("damage", ["cut", "bit", "index", "no states", "empty", "magic", "count"])
def test_a_damaged_segment_is_read_anew(tiny: Path, read_by_model: list[int], damage: str) -> None:
    first = read_states(steered_llama(tiny), REQUESTS, [1])
    wanted = Harvest({1: np.array(first.states[1])}, first.offsets)
    del first
    [states], [index] = files(".npy"), files(state_cache.INDEX)
    spoilt = bytearray(states.read_bytes())
    listed = bytearray(index.read_bytes())
    if damage == "cut":
        states.write_bytes(spoilt[:-10])
    elif damage == "bit":
        spoilt[-100] ^= 1
        states.write_bytes(spoilt)
    elif damage == "index":
        index.write_bytes(listed[:-5])
    elif damage == "no states":
        states.unlink()
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "magic":
        index.write_bytes(b"x" * 8 + listed[8:])
    else:
        struct.pack_into("<i", listed, len(listed) - 4, 1000)
        index.write_bytes(listed)
    same(read_states(steered_llama(tiny), REQUESTS, [1]), wanted)
    assert read_by_model == [20, 20]
    same(read_states(steered_llama(tiny), REQUESTS, [1]), wanted)
    assert read_by_model == [20, 20]


def test_the_longest_unused_go_first(tiny: Path, monkeypatch: pytest.MonkeyPatch, read_by_model: list[int]) -> None:
    llama = steered_llama(tiny)
    read_states(llama, REQUESTS, [1])
    read_states(llama, REQUESTS, [2])
    for age, index in enumerate(files(state_cache.INDEX)):
        for path in index.parent.iterdir():
            os.utime(path, (1e9 - 100 * age, 1e9 - 100 * age))
    size = sum(path.stat().st_size for path in files())
    monkeypatch.setenv("FINESTEER_CACHE_GB", str(size * 1.2 / 1e9))
    read_states(llama, REQUESTS, [1])  # used again, so the other one goes
    read_states(llama, REQUESTS, [3])
    assert read_by_model == [20, 20, 20]
    assert sorted(kept.layer for kept in state_cache.kept()) == [1, 3]
    read_states(llama, REQUESTS, [1])
    assert read_by_model == [20, 20, 20]


def test_no_room_for_any(tiny: Path, monkeypatch: pytest.MonkeyPatch, read_by_model: list[int]) -> None:
    monkeypatch.setenv("FINESTEER_CACHE_GB", "0")
    first = read_states(steered_llama(tiny), REQUESTS, [1])
    assert not files(".npy")
    assert np.isfinite(first.states[1]).all()  # it stays readable
    same(read_states(steered_llama(tiny), REQUESTS, [1]), first)
    assert read_by_model == [20, 20]


def test_two_at_the_same_harvest(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one fills a segment of its own."""
    monkeypatch.setattr(module, "_SAVE", 1)
    inside: list[Harvest] = []

    def meanwhile(done: int, total: int) -> None:
        if done == 10 and not inside:
            inside.append(read_states(steered_llama(tiny), REQUESTS, [1]))

    same(read_states(steered_llama(tiny), REQUESTS, [1], progress=meanwhile), inside[0])
    assert len(files(".npy")) == 2


def test_nothing_asked_for(tiny: Path) -> None:
    got = read_states(steered_llama(tiny), [], [1, 2])
    assert got.offsets.tolist() == [0]
    assert {layer: states.shape for layer, states in got.states.items()} == {1: (0, 64), 2: (0, 64)}


def test_what_float16_cannot_hold(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harvest = Harvester.harvest
    monkeypatch.setattr(Harvester, "harvest", lambda *args: ((i, 1e6 * h) for i, h in harvest(*args)))
    half = read_states(steered_llama(tiny), REQUESTS, [1]).states[1]
    assert np.isfinite(half).all() and np.abs(half).max() == np.finfo(np.float16).max
    assert np.abs(read_states(steered_llama(tiny), REQUESTS, [1], kind=np.float32).states[1]).max() > 1e5


def test_a_folder_that_cannot_be_made(tiny: Path, home: Path) -> None:
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "states").write_text("")
    with pytest.raises(StorageError, match="cannot create the folder"):
        read_states(steered_llama(tiny), REQUESTS, [1])


def test_a_limit_that_is_no_number(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("much", "4GB", "nan", "inf"):
        monkeypatch.setenv("FINESTEER_CACHE_GB", text)
        with pytest.raises(DataError, match="FINESTEER_CACHE_GB is"):
            read_states(steered_llama(tiny), REQUESTS, [1])


def test_two_processes_fill_two_segments(tiny: Path) -> None:
    [wanted] = [read_states(steered_llama(tiny), REQUESTS, [1])]
    state_cache.clear()
    inner: list[Harvest] = []

    def another(done: int, total: int) -> None:
        if not inner:  # the lock is another file's handle here, as in another process
            inner.append(wanted)
            inner[0] = read_states(steered_llama(tiny), REQUESTS, [1])

    same(read_states(steered_llama(tiny), REQUESTS, [1], progress=another), wanted)
    same(inner[0], wanted)
    assert len(files(".npy")) == 2 and not files(".part") and not files(".done")
    assert any(path.name.endswith(f"-{os.getpid()}.npy") for path in files(".npy"))
    assert state_cache.trim(0) > 0 and not files(".npy")
