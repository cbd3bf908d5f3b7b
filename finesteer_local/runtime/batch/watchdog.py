"""Notices that an engine has not moved for a while, whatever the cause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_TICKS = 8  # how often it looks during `seconds`


class Watchdog:
    """Calls `on_stall` from a thread of its own, once, where work that has begun does not move for `seconds`.

    Time in which the whole process stood still (a laptop that slept, SIGSTOP) does not count, because the watchdog
    counts how often it has looked. Once the work moves again, it is no longer stalled.

    Attributes:
        stalled: whether the work does not move.
    """

    def __init__(self, seconds: float, on_stall: Callable[[], None]) -> None:
        self._seconds, self._on_stall = seconds, on_stall
        self._moves = 0
        self._working = False
        self.stalled = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="finesteer-watchdog", daemon=True).start()

    def begin(self) -> None:
        """Say that work begins."""
        self._working = True
        self.move()

    def move(self) -> None:
        """Say that the work has moved."""
        self._moves += 1
        self.stalled = False

    def rest(self) -> None:
        """Say that there is no work."""
        self._working = False
        self.move()

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        tick = self._seconds / _TICKS
        seen, still, before = -1, 0.0, time.monotonic()
        while not self._ended.wait(tick):
            now = time.monotonic()
            still += min(now - before, 2 * tick)
            before, moves = now, self._moves
            if moves != seen or not self._working:
                seen, still = moves, 0.0
            elif still >= self._seconds and not self.stalled:
                self.stalled = True
                self._on_stall()
