"""llama.cpp's worker threads (OpenMP), which belong to the Python thread that computes.

Once two Python threads have computed, there are more workers than processors. GCC's OpenMP then lets a worker that
waits fall asleep at once (`gomp_throttled_spin_count`), and llama.cpp waits some thousand times for every token: on two
cores a token of SmolLM2 took 34 ms instead of 10, although one of the two groups of workers did nothing. So whoever
stops computing gives its workers back; the next computation makes others, in a fraction of a millisecond.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.ggml import function

_SOFT = 1  # omp_pause_soft


def release_workers() -> None:
    """End the workers of the calling thread (`omp_pause_resource_all`); nothing where llama.cpp has no OpenMP."""
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@cache
def _pause() -> Any:
    try:
        return function("omp_pause_resource_all", ctypes.c_int, [ctypes.c_int])
    except SteeringError:
        return None
