"""Ctrl-C: raised where the exception cannot be lost, or given another meaning for a while."""

from __future__ import annotations

import _thread
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from finesteer_local.signals import handled_by


@contextmanager
def interrupts_to(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` for every Ctrl-C in the block, where it runs in the main thread: signals reach no other.

    `handler` may raise. Python drops an exception in a function that C called, and a signal that arrives while C
    computes is seen first in just such a function: there it waits for the next one that can pass it on.
    """
    under_way = False

    def on_signal(_: int, frame: FrameType | None) -> None:
        nonlocal under_way
        under_way = _drops_exceptions(frame)
        if under_way:
            _thread.start_new_thread(_thread.interrupt_main, ())  # asked for here, it would arrive here
        else:
            handler()

    with handled_by(on_signal, signal.SIGINT):
        yield
        while under_way:
            time.sleep(0.001)


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """`KeyboardInterrupt` for every Ctrl-C in the block, unless the program was started to ignore it (nohup, `&`)."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with interrupts_to(_raise):
        yield


def _raise() -> None:
    raise KeyboardInterrupt


def _drops_exceptions(frame: FrameType | None) -> bool:
    """Whether an exception raised in `frame` would be lost, or another handler is still being called."""
    if frame is not None and _place(frame) in _GUARDED:
        return True
    while frame is not None:
        if _place(frame) in _UNGUARDED or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _place(frame: FrameType) -> tuple[str, str]:
    return frame.f_globals.get("__name__", ""), frame.f_code.co_name


_UNGUARDED = {("llama_cpp._logger", "llama_log_callback"), (__name__, "on_signal")}
# These keep what the functions they call raise; they are not yet ready to when they are entered.
_GUARDED = {("finesteer_local.runtime.tap", name) for name in ("_eval", "_on_layer", "_add")}
