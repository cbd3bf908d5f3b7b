"""Physical cores are counted, the slow ones left out, on machines as their systems describe them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from finesteer_local.runtime import cores


class Machine:
    """A Linux machine; a core is the list of its processors."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        monkeypatch.setattr(cores.sys, "platform", "linux")
        monkeypatch.setattr(cores, "_CPUS", folder / "cpus")
        monkeypatch.setattr(cores, "_INTEL_PERFORMANCE", folder / "cpu_core")

    def has(self, *cores: list[int], capacity: dict[int, int] | None = None) -> None:
        for core in cores:
            for n in core:
                topology = self.folder / "cpus" / f"cpu{n}" / "topology"
                topology.mkdir(parents=True)
                (topology / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n")
                if capacity:
                    (topology.parent / "cpu_capacity").write_text(f"{capacity[n]}\n")
        self.may_use({n for core in cores for n in core})

    def may_use(self, processors: set[int]) -> None:
        self._monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors, raising=False)


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_two_threads_a_core(linux: Machine) -> None:
    linux.has([0, 4], [1, 5], [2, 6], [3, 7])
    assert cores.default_threads() == 4
    linux.may_use({0, 4, 1})
    assert cores.default_threads() == 2


def test_one_thread_a_core(linux: Machine) -> None:
    linux.has(*([n] for n in range(16)))
    assert cores.default_threads() == 16
    linux.may_use({3})
    assert cores.default_threads() == 1


def test_performance_cores_of_intel(linux: Machine) -> None:
    linux.has([0, 1], [2, 3], [4, 5], [6], [7], [8], [9])
    (linux.folder / "cpu_core").write_text("0-3,4-5\n")
    assert cores.default_threads() == 3
    linux.may_use({7, 8})  # where only slow ones may be used, they are
    assert cores.default_threads() == 2


def test_big_and_little_cores_of_arm(linux: Machine) -> None:
    linux.has(
        *([n] for n in range(8)), capacity={0: 1024, **dict.fromkeys((1, 2, 3), 870), **dict.fromkeys(range(4, 8), 250)}
    )
    assert cores.default_threads() == 4
    linux.may_use({5, 6})
    assert cores.default_threads() == 2


def test_a_system_that_does_not_tell(linux: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    linux.may_use(set(range(6)))
    assert cores.default_threads() == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cores.default_threads() == 12
    monkeypatch.setattr(cores.sys, "platform", "freebsd14")
    assert cores.default_threads() == 12
    monkeypatch.setattr(cores.sys, "platform", "win32")
    assert cores.default_threads() == (12 if sys.platform != "win32" else cores.default_threads())


@pytest.mark.parametrize(
    ("told", "threads"),
    [({"hw.perflevel0.physicalcpu": 8, "hw.physicalcpu": 10}, 8), ({"hw.physicalcpu": 4}, 4), ({}, 10)],
    ids=["Apple", "Intel", "neither"],
)
def test_macos(monkeypatch: pytest.MonkeyPatch, told: dict[str, int], threads: int) -> None:
    monkeypatch.setattr(cores.sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(cores, "_macos", lambda name: told.get(name, 0))
    assert cores.default_threads() == threads


def test_windows() -> None:
    def core(kind: int, length: int = 48) -> bytes:
        return (0).to_bytes(4, "little") + length.to_bytes(4, "little") + bytes([1, kind]) + bytes(length - 10)

    assert cores._fastest_cores(core(0) * 6) == 6
    assert cores._fastest_cores(core(1) * 8 + core(0, 64) * 4) == 8
    assert cores._fastest_cores(b"") == 0


def test_this_machine() -> None:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= cores.default_threads() <= available
