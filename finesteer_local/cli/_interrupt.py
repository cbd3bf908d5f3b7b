"""Ctrl-C, where it means something else than an exception at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_to(handler: Callable[..., None]) -> Iterator[None]:
    """Call `handler` for every Ctrl-C in the block, where it runs in the main thread: signals reach no other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
