"""The other end of `runtime.rpc`: lends this machine's devices over llama.cpp's RPC (`ggml_backend_rpc_start_server`).

llama.cpp's server has no authentication and no encryption, serves one program at a time, and never returns.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finesteer_local.errors import WorkerError
from finesteer_local.runtime import machine
from finesteer_local.runtime.ggml import function
from finesteer_local.runtime.rpc import greeting, procedure
from finesteer_local.signals import handled_by

_START = 10.0  # seconds


@dataclass(frozen=True)
class Serving:
    """A worker that listens."""

    address: str
    port: int
    version: str  # of llama.cpp's RPC
    devices: tuple[machine.Device, ...]


def work(
    host: str,
    port: int,
    *,
    devices: Sequence[str] = (),
    n_threads: int,
    on_listening: Callable[[Serving], None] = lambda serving: None,
) -> None:
    """Lend devices until SIGTERM or Ctrl-C, then end the process with exit code 0: llama.cpp's server knows no end.

    Args:
        host: a name or IPv4 address of this machine; llama.cpp's RPC knows no IPv6.
        port: 0 takes a free one.
        devices: by name; none takes every GPU, or the processor where there is none.
        n_threads: of the processor.

    Raises:
        WorkerError: this llama.cpp has no RPC, the address cannot be used, or there is no such device.
    """
    start = procedure(
        "ggml_backend_rpc_start_server",
        None,
        [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)],
    )
    chosen = _choose(devices)
    address, port = _free(host, port)
    pointers = (ctypes.c_void_p * len(chosen))(*(pointer for pointer, _ in chosen))
    said = _quiet_c()

    def run() -> None:
        start(f"{address}:{port}".encode(), None, n_threads, len(chosen), pointers)

    server = threading.Thread(target=run, name="finesteer-worker", daemon=True)
    with _signals() as stopped:
        server.start()
        version = _version("127.0.0.1" if address == "0.0.0.0" else address, port, server)
        sys.stdout = said
        on_listening(Serving(address, port, version, tuple(device for _, device in chosen)))
        while server.is_alive() and not stopped.wait(0.2):
            pass
    if not stopped.is_set():
        raise WorkerError(f"llama.cpp stopped listening on {address}:{port}")
    sys.stdout.flush()
    os._exit(0)  # the server's thread may be computing: nothing of llama.cpp may be taken down under it


def _choose(names: Sequence[str]) -> list[tuple[int, machine.Device]]:
    get = function("ggml_backend_dev_get", ctypes.c_void_p, [ctypes.c_size_t])
    there = {device.name: (get(i), device) for i, device in enumerate(machine.devices())}
    missing = [name for name in names if name not in there]
    if missing:
        raise WorkerError(f"there is no device {missing[0]!r}; there are: {', '.join(there)}")
    if names:
        return [there[name] for name in dict.fromkeys(names)]
    graphics = [pair for pair in there.values() if "GPU" in pair[1].kind]
    return graphics or [pair for pair in there.values() if pair[1].kind == "processor"]


def _free(host: str, port: int) -> tuple[str, int]:
    """The IPv4 address of `host`, and `port` if nobody has it, or a free one for 0."""
    try:
        address = socket.gethostbyname(host)
        with socket.socket() as probe:
            if os.name != "nt":  # as llama.cpp does it: a port in TIME_WAIT is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
            probe.listen(1)
            return address, int(probe.getsockname()[1])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WorkerError(f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port") from error


def _quiet_c() -> Any:
    """Send what llama.cpp prints to stdout nowhere; returns a stdout that still reaches the reader."""
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return kept


def _version(address: str, port: int, server: threading.Thread) -> str:
    """Wait until the worker answers; returns its RPC version."""
    end = time.monotonic() + _START
    while time.monotonic() < end and server.is_alive():
        try:
            return ".".join(map(str, greeting(address, port)))
        except OSError:
            time.sleep(0.02)
    raise WorkerError(f"llama.cpp cannot listen on {address}:{port}; choose another --host or --port")


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event for Ctrl-C and SIGTERM."""
    stopped = threading.Event()
    with handled_by(lambda *_: stopped.set(), signal.SIGINT, signal.SIGTERM):
        yield stopped
