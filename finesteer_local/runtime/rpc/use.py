"""Adding workers: from then on llama.cpp may put layers of every model on their devices."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from finesteer_local.errors import WorkerError
from finesteer_local.runtime.ggml import function
from finesteer_local.runtime.rpc import graphs, lost
from finesteer_local.runtime.rpc.hello import check_worker

INSTALL = 'CMAKE_ARGS="-DGGML_RPC=on" pip install --force-reinstall --no-cache-dir llama-cpp-python'
MAX_WORKERS = 15  # GGML_SCHED_MAX_BACKENDS is 16, and the processor is one

_lock = threading.Lock()


def use_workers(endpoints: Sequence[str]) -> None:
    """Add the devices of the workers at `endpoints` (`host:port`) for every model that this process opens from now on.

    Each endpoint is added once in a process, and stays; one that was added before is left alone.

    Raises:
        WorkerError: this llama.cpp has no RPC; an endpoint is not `host:port`, cannot be reached, or speaks another
            version.
    """
    with _lock:
        new = [endpoint for endpoint in dict.fromkeys(endpoints) if endpoint not in lost.watched]
        if not new:
            return
        add = procedure("ggml_backend_rpc_add_server", ctypes.c_void_p, [ctypes.c_char_p])
        if len(lost.watched) + len(new) > MAX_WORKERS:
            raise WorkerError(f"llama.cpp can use {MAX_WORKERS} workers at most; give fewer with --rpc")
        addresses = {endpoint: check_worker(endpoint) for endpoint in new}
        lost.say_so_on_abort()
        register = function("ggml_backend_register", None, [ctypes.c_void_p])
        count = function("ggml_backend_reg_dev_count", ctypes.c_size_t, [ctypes.c_void_p])
        device_of = function("ggml_backend_reg_dev_get", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t])
        open_device = function("ggml_backend_dev_init", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p])
        for endpoint, address in addresses.items():
            registry = add(endpoint.encode())
            if not registry:
                raise WorkerError(f"the worker at {endpoint} offers no device")
            graphs.watch(open_device(device_of(registry, i), None) for i in range(count(registry)))
            register(registry)
            lost.watch(endpoint, _connections(address))


def procedure(name: str, restype: Any, argtypes: list[Any]) -> Any:
    """A function of llama.cpp's RPC back end, as its programs get it: it may be a library of its own.

    Raises:
        WorkerError: this llama.cpp was built without RPC; the message holds the command that installs it.
    """
    registry = function("ggml_backend_reg_by_name", ctypes.c_void_p, [ctypes.c_char_p])(b"RPC")
    address_of = function("ggml_backend_reg_get_proc_address", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p])
    address = address_of(registry, name.encode()) if registry else None
    if not address:
        raise WorkerError(f"this llama-cpp-python was built without RPC; get it with: {INSTALL}")
    return ctypes.CFUNCTYPE(restype, *argtypes)(address)


def _connections(address: tuple[str, int]) -> Iterator[socket.socket]:
    """This process's connections to `address`, as duplicates; llama.cpp does not show its own. None on Windows."""
    with suppress(OSError):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError), _duplicate(int(name)) as connection:
                if connection.getpeername()[:2] == address:
                    yield connection.dup()


@contextmanager
def _duplicate(fd: int) -> Iterator[socket.socket]:
    copy = os.dup(fd)
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # it is none
        os.close(copy)
        raise
    with connection:
        yield connection
