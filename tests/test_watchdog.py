"""An engine that does not move, or fails: its requests end with one clear error, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finesteer_local.errors import EngineClosedError, EngineError, StalledError
from finesteer_local.runtime.batch import BatchEngine, completion_request
from finesteer_local.runtime.batch.scheduler import Scheduler
from finesteer_local.runtime.batch.watchdog import Watchdog
from reference import steered_llama
from serving import wait_until


@contextmanager
def watched(seconds: float) -> Iterator[tuple[Watchdog, list[float]]]:
    stalls: list[float] = []
    watchdog = Watchdog(seconds, lambda: stalls.append(time.monotonic()))
    try:
        yield watchdog, stalls
    finally:
        watchdog.close()


def test_it_calls_once_where_nothing_moves() -> None:
    with watched(0.4) as (watchdog, stalls):
        began = time.monotonic()
        watchdog.begin()
        for _ in wait_until():
            if stalls:
                break
        assert stalls[0] - began >= 0.3 and watchdog.stalled
        time.sleep(0.6)
        assert len(stalls) == 1
        watchdog.move()
        assert not watchdog.stalled


def test_who_moves_or_rests_is_not_stalled() -> None:
    with watched(0.6) as (watchdog, stalls):
        time.sleep(1)  # nothing to do
        watchdog.begin()
        for _ in range(20):
            time.sleep(0.05)
            watchdog.move()
        watchdog.rest()
        time.sleep(1)
        assert not stalls and not watchdog.stalled


def test_a_step_that_does_not_end(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, goes_on = steered_llama(tiny), threading.Event()
    step = Scheduler.step

    def stuck(self: Scheduler) -> None:
        self._admit()
        assert goes_on.wait(60)
        step(self)

    engine = BatchEngine(llama, n_parallel=1, stall_seconds=0.5)
    request = completion_request(llama, "Hello there", max_tokens=4, temperature=0.0)
    wanted = engine.submit(request).result().text
    monkeypatch.setattr(Scheduler, "step", stuck)
    streams = [engine.submit(request) for _ in range(3)]  # one has a place, two wait
    for stream in streams:
        with pytest.raises(StalledError, match="does not move"):
            stream.result()
    assert isinstance(engine.failure, StalledError)
    with pytest.raises(StalledError, match="restart"):
        engine.submit(request)
    with pytest.raises(StalledError, match="cannot be closed"):
        closing = threading.Thread(target=goes_on.set)
        engine.close()
    monkeypatch.setattr(Scheduler, "step", step)
    closing.start()
    engine._thread.join(60)
    assert not engine._thread.is_alive() and wanted


def test_what_moves_again_answers_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, goes_on = steered_llama(tiny), threading.Event()
    step = Scheduler.step
    with BatchEngine(llama, n_parallel=1, stall_seconds=0.5) as engine:
        request = completion_request(llama, "Hello there", max_tokens=4, temperature=0.0)
        wanted = engine.submit(request).result().text
        monkeypatch.setattr(Scheduler, "step", lambda self: goes_on.wait(60) and step(self))
        with pytest.raises(StalledError):
            engine.submit(request).result()
        goes_on.set()
        for _ in wait_until():
            if engine.failure is None:
                break
        assert engine.submit(request).result().text == wanted


def test_a_step_that_fails(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered_llama(tiny)

    def fails(self: Scheduler) -> None:
        raise KeyError("something\nodd")

    with BatchEngine(llama, n_parallel=1) as engine:
        request = completion_request(llama, "Hello there", max_tokens=4)
        monkeypatch.setattr(Scheduler, "step", fails)
        with pytest.raises(EngineError, match=r"KeyError: .something.*odd.*restart") as failed:
            engine.submit(request).result()
        assert "\n" not in str(failed.value) and engine.failure is failed.value
        with pytest.raises(EngineError, match="restart"):
            engine.submit(request)


def test_closing_is_no_full_queue(tiny: Path) -> None:
    llama = steered_llama(tiny)
    engine = BatchEngine(llama, n_parallel=1)
    engine.close()
    with pytest.raises(EngineClosedError, match="being closed"):
        engine.submit(completion_request(llama, "Hello there"))
