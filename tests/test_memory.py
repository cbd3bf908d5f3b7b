"""Memory that a training does not use is not kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finesteer_local.training.memory import PROGRAMS, give_back
from finesteer_local.training.progress import Stopwatch

_BOUND = """
import os
from finesteer_local.training import precision
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"])
"""


@pytest.mark.parametrize(("given", "wanted"), [(None, PROGRAMS), ("7", 7)])
def test_programs_are_bounded_before_the_first_product(given: str | None, wanted: int) -> None:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {} if given is None else dict.fromkeys(names, given)
    found = subprocess.run([sys.executable, "-c", _BOUND], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(wanted)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_free_goes_back() -> None:
    """Small pieces below one that stays: the C library keeps them all until it is asked."""
    script = """
import ctypes
from finesteer_local.training.memory import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) // 1024
pieces = [libc.malloc(60_000) for _ in range(4000)]
for piece in pieces:
    ctypes.memset(piece, 1, 60_000)
full = resident()
for piece in pieces[:-1]:
    libc.free(piece)
kept = resident()
give_back()
print(full, kept, resident())
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    full, kept, after = map(int, found.stdout.split())
    if kept < full - 100:
        pytest.skip("this C library gives back by itself")
    assert after < full - 180


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is not asked")
def test_what_was_read_of_a_model_goes_back(tmp_path: Path) -> None:
    """Its pages come again when they are read again; what is only like it, or may be written to, stays."""
    for name in ("model.gguf", "other.bin"):
        (tmp_path / name).write_bytes(b"GGUF" * (25 << 18))
    script = f"""
import mmap, os
import numpy as np
from finesteer_local.training.memory import give_back
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssFile")).split()[1]) // 1024
def mapped(name, mode):
    return np.memmap(os.path.join({str(tmp_path)!r}, name), np.uint8, mode)
before = resident()
model, other, changed = mapped("model.gguf", "r"), mapped("other.bin", "r"), mapped("model.gguf", "c")
total = int(model.sum(dtype=np.int64)) + int(other.sum(dtype=np.int64))
changed[5] = 77
full = resident() - before
give_back()
print(full, resident() - before, changed[5], total == int(model.sum(dtype=np.int64)) + int(other.sum(dtype=np.int64)))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    full, after, changed, same = found.stdout.split()
    assert int(full) > 45 and 20 < int(after) < 35 and (changed, same) == ("77", "True")


def test_every_stage_begins_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from finesteer_local.training import progress

    called: list[str] = []
    monkeypatch.setattr(progress, "give_back", lambda: called.append("given"))
    watch = Stopwatch()
    for stage, done in (("reading", 1), ("reading", 2), ("learning", 1), ("learning", 2)):
        watch(stage, done, 2)
    assert len(called) == 2 and list(watch.stages) == ["reading", "learning"]
    give_back()  # on any system
