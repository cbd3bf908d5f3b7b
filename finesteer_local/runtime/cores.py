"""How many processors compute best: the physical cores, without those that are built to be slow.

Two threads of one core share what multiplies, and a slow core lets all others wait at the end of every matrix. So a
core counts once, and where a processor has performance and efficiency cores only the former count (as llama.cpp's own
programs have it: `cpu_get_num_math`). Where the system does not tell, every processor counts.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_INTEL_PERFORMANCE = Path("/sys/devices/cpu_core/cpus")  # only on hybrid processors
_SLOW = 0.5  # of the fastest core's capacity


def default_threads() -> int:
    """Threads for prefill and decode: the performance cores that this process may use."""
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = 0
    with suppress(OSError, ValueError, AttributeError):  # whatever a system does not have
        if sys.platform == "linux":
            found = _linux(available)
        elif sys.platform == "darwin":
            found = _macos("hw.perflevel0.physicalcpu") or _macos("hw.physicalcpu")
        elif sys.platform == "win32":
            found = _windows()
    return min(found, len(available)) or len(available)


def _linux(available: Set[int]) -> int:
    """Cores of the processors in `available`: threads of one core name the same siblings."""
    if _INTEL_PERFORMANCE.is_file():
        available = available & _numbers(_INTEL_PERFORMANCE.read_text()) or available
    else:
        capacity = {n: _capacity(n) for n in available}
        available = {n for n in available if capacity[n] >= _SLOW * max(capacity.values())}
    return len({(_CPUS / f"cpu{n}" / "topology" / "thread_siblings_list").read_text() for n in available})


def _capacity(n: int) -> int:
    """A processor's speed beside the fastest one's 1024, on ARM; elsewhere all have the same."""
    file = _CPUS / f"cpu{n}" / "cpu_capacity"
    return int(file.read_text()) if file.is_file() else 1024


def _numbers(text: str) -> set[int]:
    """`0-3,8` as numbers."""
    ranges = [part.split("-") for part in text.strip().split(",")]
    return {n for ends in ranges for n in range(int(ends[0]), int(ends[-1]) + 1)}


def _macos(name: str) -> int:
    value = ctypes.c_int32()
    size = ctypes.c_size_t(ctypes.sizeof(value))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return 0 if failed else value.value


def _windows() -> int:
    ask = getattr(ctypes, "windll").kernel32.GetLogicalProcessorInformationEx  # noqa: B009 (no such name elsewhere)
    size = ctypes.c_uint32()
    ask(0, None, ctypes.byref(size))  # 0: RelationProcessorCore
    buffer = ctypes.create_string_buffer(size.value)
    return _fastest_cores(buffer.raw[: size.value]) if ask(0, buffer, ctypes.byref(size)) else 0


def _fastest_cores(records: bytes) -> int:
    """Cores of the highest class in an array of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, one record a core."""
    classes, at = [], 0
    while at + 10 <= len(records):
        length = int.from_bytes(records[at + 4 : at + 8], "little")
        classes.append(records[at + 9])  # EfficiencyClass: higher is faster
        at += max(length, 10)
    return classes.count(max(classes, default=0))
