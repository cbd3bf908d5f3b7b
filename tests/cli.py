"""How the tests call the command line: in this process, as a program of its own, and at a terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from finesteer_local.cli import program

PROMPT = "\x1b[?2004h"  # prompt_toolkit waits for keys
SPINNER_GONE = "\x1b[?25h"  # rich shows the cursor again
HEAVY = ("torch", "sklearn", "llama_cpp", "numpy", "gguf", "rich", "prompt_toolkit")


def call(*args: str | Path, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process; the exit code is what the shell would see."""
    try:
        runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg]
    except TypeError:  # click 8.2 and later keep them apart anyway
        runner = CliRunner()
    # A tiny model gains nothing from threads, and on a busy machine they wait for each other.
    with patch("finesteer_local.runtime.load.default_threads", lambda: 1):
        result = runner.invoke(program, [str(arg) for arg in args], input=stdin, prog_name="finesteer-local")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def good(*args: str | Path, stdin: str | bytes | None = None) -> Result:
    result = call(*args, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result


def error_of(*args: str | Path, stdin: str | bytes | None = None, code: int = 1) -> str:
    """The one line that a failing command prints."""
    result = call(*args, stdin=stdin)
    assert result.exit_code == code, (result.exit_code, result.output)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def command_line(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "finesteer_local", *map(str, args)]


def spawn(*args: str | Path, stdin: bytes = b"", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command_line(*args), input=stdin, capture_output=True, timeout=timeout)


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process, self._fd, self.seen = process, fd, ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C does to a program that is not reading keys."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for(self, text: str, timeout: float = 60) -> str:
        """Wait until `text` appears in the output not looked at yet; returns the output up to its end."""
        self._read(lambda: text in self.seen, timeout, f"no {text!r}")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def wait_for_more(self, n: int, timeout: float = 60) -> None:
        """Wait until there are `n` characters of output not looked at yet."""
        self._read(lambda: len(self.seen) >= n, timeout, f"no {n} characters")

    def exit_code(self, timeout: float = 60) -> int:
        self._read(lambda: self.process.poll() is not None, timeout, "still running")
        return self.process.wait()

    def _read(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        while not done():
            assert time.monotonic() < end, f"{what} in {self.seen[-2000:]!r}"
            if select.select([self._fd], [], [], 0.05)[0]:
                try:
                    data = os.read(self._fd, 65536)
                except OSError:  # the other side is closed
                    data = b""
                self.seen += data.decode("utf-8", "replace")
                if b"\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
                    os.write(self._fd, b"\x1b[1;1R")
                if not data and done():
                    return


@contextmanager
def terminal(*args: str | Path) -> Iterator[Terminal]:
    """Run a command at a pseudo-terminal that it controls; skips the test on Windows, which has none of this kind."""
    pty = pytest.importorskip(
        "pty", reason="the tests at a terminal need a pseudo-terminal of Unix: Linux or macOS has it"
    )
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        command_line(*args), stdin=side, stdout=side, stderr=side, start_new_session=True, env=environment
    )
    os.close(side)
    try:
        yield Terminal(process, main)
    finally:
        process.kill()
        process.wait()
        os.close(main)
