"""How far a training has come, and how long its stages took."""

from __future__ import annotations

import time
from collections.abc import Callable

from finesteer_local.training.memory import give_back

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


def quiet(stage: str, done: int, total: int) -> None:
    """A `Progress` that tells nobody."""


class Stopwatch:
    """A `Progress` that passes everything on, and adds up how long every stage takes.

    What a stage has freed is given back to the system when the next one begins (memory.py).
    """

    def __init__(self, progress: Progress = quiet) -> None:
        self.stages: dict[str, float] = {}  # seconds, in the order in which the stages begin
        self._progress = progress
        self._started = self._last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.stages:
            give_back()
        now = time.monotonic()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now
        self._progress(stage, done, total)

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started
