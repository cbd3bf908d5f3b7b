"""Workers that are given back leave nothing behind, and come again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batching import tokens
from finesteer_local.errors import SteeringError
from finesteer_local.runtime import threads
from reference import plain_llama, read


def n_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_workers_go_and_come_again(tiny: Path) -> None:
    llama = plain_llama(tiny, n_threads=3, n_threads_batch=3)
    wanted = read(llama, tokens(20))
    with_workers = n_threads() if Path("/proc/self/task").is_dir() else 0
    threads.release_workers()
    if with_workers and threads._pause() is not None:
        assert n_threads() == with_workers - 2
    threads.release_workers()  # twice does no harm
    np.testing.assert_array_equal(read(llama, tokens(20)), wanted)
    threads.release_workers()


def test_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise SteeringError("not exported")

    threads._pause.cache_clear()
    monkeypatch.setattr(threads, "function", missing)
    threads.release_workers()
    assert threads._pause() is None
    threads._pause.cache_clear()
