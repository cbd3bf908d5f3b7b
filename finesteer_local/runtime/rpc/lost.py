"""Workers that go away.

The thread that computes then waits in llama.cpp for an answer that never comes, or llama.cpp ends the process. Neither
can be caught: the process ends with one line and exit code 1, and nothing half-written stays behind.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NoReturn

from finesteer_local import paths
from finesteer_local.errors import WorkerError
from finesteer_local.runtime.ggml import function
from finesteer_local.runtime.rpc.hello import split_endpoint

_SILENCE = 8  # seconds after which a machine that acknowledges nothing counts as gone

watched: dict[str, tuple[socket.socket, ...]] = {}
"""Endpoint, as llama.cpp got it -> llama.cpp's own connections to it, to look at."""

_told = False  # somebody has been told that a worker is gone


def watch(endpoint: str, connections: Iterable[socket.socket]) -> None:
    """From now on, look after a worker that was added."""
    watched[endpoint] = tuple(connections)
    for connection in watched[endpoint]:
        _notice_silence(connection)


def say_so_on_abort() -> None:
    """Let llama.cpp, before it ends the process, have it said which worker is gone (`ggml_set_abort_callback`)."""
    function("ggml_set_abort_callback", ctypes.c_void_p, [ctypes.c_void_p])(_on_abort)


def check_workers() -> None:
    """Raise `WorkerError` where a worker has gone away since it was added.

    Called before llama.cpp would find out, it leaves the program running: a conversation can still be saved.
    """
    gone = _gone()
    if gone:
        global _told
        _told = True
        raise WorkerError(_sentence(gone))


def end_when_lost(seconds: float = 1.0) -> None:
    """From now on, end the process as soon as a worker has gone away, not only when it is needed next."""

    def watch() -> None:
        while True:
            time.sleep(seconds)
            if gone := _gone():
                _end(gone)

    if watched:
        threading.Thread(target=watch, name="finesteer-workers", daemon=True).start()


def _gone() -> list[str]:
    return [endpoint for endpoint, sockets in watched.items() if any(map(_is_closed, sockets))]


def _is_closed(connection: socket.socket) -> bool:
    """Look without taking anything away: llama.cpp reads from the same connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _sentence(endpoints: Sequence[str]) -> str:
    noun, pronoun = ("worker", "it") if len(endpoints) == 1 else ("workers", "them")
    return (
        f"the {noun} at {', '.join(endpoints)} went away, and with {pronoun} a part of the model; "
        f"start {pronoun} again, then this program"
    )


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)  # type: ignore[untyped-decorator]
def _on_abort(message: bytes) -> None:
    """llama.cpp is about to abort the process (`ggml_abort`), in whichever of its threads."""
    if b"ggml-rpc" in message:
        _end(_gone() or [endpoint for endpoint in watched if not _answers(endpoint)] or list(watched))
    os.write(2, message + b"\n")  # as llama.cpp does


def _answers(endpoint: str) -> bool:
    try:
        socket.create_connection(split_endpoint(endpoint), timeout=1.0).close()
    except OSError:
        return False
    return True


def _end(endpoints: Sequence[str]) -> NoReturn:
    """End the process: the thread that computes cannot be brought back from llama.cpp."""
    emergency = threading.Timer(3.0, os._exit, (1,))  # should somebody hold what is needed below
    emergency.daemon = True
    emergency.start()
    with suppress(Exception):
        paths.discard_unfinished()
    with suppress(Exception):
        sys.stdout.flush()
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar may have hidden it
    with suppress(OSError):
        os.write(2, b"" if _told else f"{cursor}\nError: {_sentence(endpoints)}\n".lstrip("\n").encode())
    os._exit(1)


@atexit.register
def _leave() -> None:
    """Do not let the interpreter take a model down whose worker is gone: llama.cpp would wait for it."""
    if gone := _gone():
        _end(gone)


def _notice_silence(connection: socket.socket) -> None:
    """Let the system end a connection whose other machine says nothing any more (switched off, cable pulled)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 2),
        ("TCP_KEEPALIVE", 2),  # macOS's name for it
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 1000 * _SILENCE),
    ):
        if hasattr(socket, option):
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
