"""Ctrl-C reaches the command wherever the interpreter first sees it."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp._logger
import pytest

from finesteer_local.cli._interrupt import interrupts_raise, interrupts_to
from finesteer_local.runtime.tapped import TappedLlama
from reference import SETTINGS
from tiny import write_tiny_model


@pytest.fixture(autouse=True)
def python_s_own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_inside_llama_cpp_s_log(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    lines = []

    def show(text: str, **_: object) -> None:
        lines.append(text)
        _thread.interrupt_main()

    monkeypatch.setattr(llama_cpp._logger, "print", show, raising=False)
    monkeypatch.setattr(llama_cpp._logger.logger, "level", 0)
    with pytest.raises(KeyboardInterrupt), interrupts_raise():
        llama_cpp._logger.llama_log_callback(4, b"a line", None)
    assert lines == ["a line"]
    assert "Traceback" not in capfd.readouterr().err


def test_inside_a_destructor(capfd: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            _thread.interrupt_main()
            len("the interpreter looks at a call")

    with pytest.raises(KeyboardInterrupt), interrupts_raise():
        Dying()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("native", [True, False])
def test_while_llama_cpp_computes(native: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {**SETTINGS, "n_ctx": 4096, "n_batch": 2048, "n_ubatch": 16}
    llama = TappedLlama(str(write_tiny_model(tmp_path / "tiny.gguf")), native_tap=native, **settings)
    seen = 0

    def look(layer: int, rows: object) -> bool:
        nonlocal seen
        seen += 1
        return True

    def read() -> None:
        llama.forget()
        llama.tap.arm(dict.fromkeys(range(4), look))
        try:
            llama.decode_rows([5] * 2000, 0)
            llama.tap.check()
        finally:
            llama.tap.disarm()

    began = time.perf_counter()
    read()
    whole = time.perf_counter() - began
    for part in range(1, 11):
        seen = 0
        timer = threading.Timer(whole * part / 20, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt), interrupts_raise():
            read()
            timer.join()  # a pass that was faster than expected
            len("the interpreter looks at a call")
        assert seen
    assert "Traceback" not in capfd.readouterr().err


def test_what_it_means_for_a_while() -> None:
    calls = []
    with interrupts_raise():
        with interrupts_to(lambda: calls.append("asked")):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == ["asked"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_from_the_start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_raise():
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread() -> None:
    thread = threading.Thread(target=lambda: interrupts_raise().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
