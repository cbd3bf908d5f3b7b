"""Signals are handled otherwise in a block, and as before behind it."""

from __future__ import annotations

import signal
import threading

import pytest

from finesteer_local.signals import handled_by

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def test_in_the_block_and_not_behind_it() -> None:
    before, seen = [signal.getsignal(number) for number in NUMBERS], list[int]()
    with pytest.raises(RuntimeError), handled_by(lambda number, _: seen.append(number), *NUMBERS):
        for number in NUMBERS:
            signal.raise_signal(number)
        raise RuntimeError
    assert seen == list(NUMBERS)
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_another_thread_changes_nothing() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with handled_by(lambda *_: None, signal.SIGTERM):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
