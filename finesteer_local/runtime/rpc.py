"""Other machines as devices: llama.cpp's RPC back end, seen from the machine that has the model.

A worker (`finesteer-local worker`, llama.cpp's `rpc-server`) lends its devices over TCP. Once added, they are devices
like a GPU of this machine: llama.cpp puts layers on them, and the tap reads and writes their tensors through the same
`ggml_backend_tensor_get` and `ggml_backend_tensor_set`.

llama.cpp ends the process (`GGML_ABORT` in ggml-rpc.cpp) where a worker cannot be reached, speaks another version, or
goes away. So everything that can be known before is asked here, over a connection of our own, and is an error like
any other. What happens later cannot be caught: the thread that computes waits in llama.cpp for an answer that never
comes. Then the process ends with one line and exit code 1, and nothing half-written stays behind.

A worker keeps the last graph that it computed, so that the next token need not send it again, and forgets it whenever a
buffer is freed; the program does not hear of that, asks for the graph, and is hung up on. So whenever a context or a
model goes, every worker gets another graph to compute (`_forget_graphs`), and the next token sends its own anew.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, NoReturn

import llama_cpp
from llama_cpp import llama_cpp as _api

from finesteer_local import paths
from finesteer_local.errors import WorkerError
from finesteer_local.runtime.ggml import function

INSTALL = 'CMAKE_ARGS="-DGGML_RPC=on" pip install --force-reinstall --no-cache-dir llama-cpp-python'
MAX_WORKERS = 15  # GGML_SCHED_MAX_BACKENDS is 16, and the processor is one
START = "finesteer-local worker --host ADDRESS --port"

_CONNECT, _ANSWER = 4.0, 4.0  # seconds
_SILENCE = 8  # seconds after which a machine that acknowledges nothing counts as gone
_HELLO = 14  # RPC_CMD_HELLO, "must be always 14"
_CAPABILITIES = bytes(24)  # rpc_msg_hello_req: none, plain TCP
_ENDPOINT = re.compile(r"([^\s:,]+):(\d{1,5})")


@dataclass(frozen=True)
class _Worker:
    endpoint: str  # as llama.cpp got it
    backends: tuple[int, ...]  # a ggml_backend_t a device, never freed: they keep the one connection open
    sockets: tuple[socket.socket, ...]  # llama.cpp's own, to look at


_workers: dict[str, _Worker] = {}
_lock = threading.Lock()
_told = False  # somebody has been told that a worker is gone


# --- adding workers


def use_workers(endpoints: Sequence[str]) -> None:
    """Add the devices of the workers at `endpoints` (`host:port`) for every model that this process opens from now on.

    Those that were added before are left alone: an endpoint is added once a process, and stays.

    Raises:
        WorkerError: this llama.cpp has no RPC; an endpoint is none, cannot be reached, or speaks another version.
    """
    with _lock:
        new = [endpoint for endpoint in dict.fromkeys(endpoints) if endpoint not in _workers]
        if not new:
            return
        add = procedure("ggml_backend_rpc_add_server", ctypes.c_void_p, [ctypes.c_char_p])
        if len(_workers) + len(new) > MAX_WORKERS:
            raise WorkerError(f"llama.cpp can use {MAX_WORKERS} workers at most; give fewer with --rpc")
        addresses = {endpoint: check_worker(endpoint) for endpoint in new}
        function("ggml_set_abort_callback", ctypes.c_void_p, [ctypes.c_void_p])(_on_abort)
        register = function("ggml_backend_register", None, [ctypes.c_void_p])
        count = function("ggml_backend_reg_dev_count", ctypes.c_size_t, [ctypes.c_void_p])
        device_of = function("ggml_backend_reg_dev_get", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t])
        open_device = function("ggml_backend_dev_init", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p])
        for endpoint, address in addresses.items():
            registry = add(endpoint.encode())
            if not registry:
                raise WorkerError(f"the worker at {endpoint} offers no device")
            backends = tuple(open_device(device_of(registry, i), None) for i in range(count(registry)))
            register(registry)
            _workers[endpoint] = _Worker(endpoint, backends, tuple(_connections(address)))
            for connection in _workers[endpoint].sockets:
                _notice_silence(connection)
        _watch_frees()


def check_worker(endpoint: str) -> tuple[str, int]:
    """Make sure that a worker that this llama.cpp can use answers at `endpoint`; returns its address and port.

    Raises:
        WorkerError: none does; the message says what is wrong.
    """
    host, port = split_endpoint(endpoint)
    try:
        address = socket.gethostbyname(host)  # llama.cpp's RPC knows IPv4 alone
        connection = socket.create_connection((address, port), timeout=_CONNECT)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise WorkerError(
            f"cannot reach a worker at {endpoint}: {reason}; start it there with: {START} {port}"
        ) from error
    with connection:
        theirs, ours = _hello(connection, endpoint), protocol()
    if ours and (theirs[0] != ours[0] or theirs[1] > ours[1]):
        raise WorkerError(
            f"the worker at {endpoint} speaks llama.cpp's RPC {_dotted(theirs)}, this llama.cpp {_dotted(ours)}; "
            "install the same version of llama-cpp-python on both"
        )
    return address, port


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host and port of `host:port`.

    Raises:
        WorkerError: it is none.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise WorkerError(f"{endpoint!r} is no worker's address; write host:port")
    return match[1], int(match[2])


def greeting(address: str, port: int, seconds: float = _CONNECT) -> tuple[int, ...]:
    """The RPC version of the worker at an address.

    Raises:
        WorkerError: it does not answer like one.
        OSError: there is none.
    """
    with socket.create_connection((address, port), timeout=seconds) as connection:
        return _hello(connection, f"{address}:{port}")


def _hello(connection: socket.socket, endpoint: str) -> tuple[int, ...]:
    """Say hello as llama.cpp does (`negotiate_hello`); returns the worker's version, (major, minor, patch)."""
    connection.settimeout(_ANSWER)
    try:
        connection.sendall(struct.pack("<BQ", _HELLO, len(_CAPABILITIES)) + _CAPABILITIES)
        (size,) = struct.unpack("<Q", _exactly(connection, 8))
        if not 3 <= size <= 64:
            raise ValueError(size)
        return tuple(_exactly(connection, size)[:3])
    except TimeoutError as error:
        raise WorkerError(
            f"{endpoint} takes connections and does not answer: the worker serves another program, or it is no worker"
        ) from error
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"what listens at {endpoint} is no llama.cpp RPC worker, or one of another version; "
            "install the same version of llama-cpp-python on both"
        ) from error


def _exactly(connection: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = connection.recv(n - len(data))
        if not piece:
            raise ValueError("closed")
        data += piece
    return data


@cache
def protocol() -> tuple[int, int, int] | None:
    """The RPC version of this llama.cpp, from the header beside it; None where there is none."""
    header = Path(llama_cpp.__file__).parents[1] / "include" / "ggml-rpc.h"
    try:
        text = header.read_text("utf-8")
    except OSError:
        return None
    found = [re.search(rf"#define RPC_PROTO_{part}_VERSION\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    major, minor, patch = (int(match[1]) if match else -1 for match in found)
    return None if major < 0 or minor < 0 else (major, minor, patch)


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


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


# --- graphs that workers keep


@cache
def _watch_frees() -> None:
    """Let `_forget_graphs` follow whatever llama-cpp-python frees, the garbage collector's work included."""
    for name in ("llama_free", "llama_model_free"):
        setattr(_api, name, _then_forget(getattr(_api, name)))


def _then_forget(free: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(free)
    def freed(pointer: Any) -> None:
        free(pointer)
        if not sys.is_finalizing():  # then nobody computes any more
            _forget_graphs()

    return freed


def _forget_graphs() -> None:
    """Have every device of every worker compute nothing, as a graph of its own.

    ggml-rpc.cpp asks a device for the graph that it keeps where that was the last one computed there, by its number
    (`ggml_backend_rpc_graph_compute`); `rpc_server::free_buffer` drops it. Graphs made by hand have no number.
    """
    for worker in _workers.values():
        for backend in worker.backends:
            _graph_compute()(backend, _nothing())


@cache
def _graph_compute() -> Any:
    return function("ggml_backend_graph_compute", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p])


@cache
def _nothing() -> int:
    """A ggml_cgraph of one node that computes nothing: another shape of one number."""
    start = function("ggml_init", ctypes.c_void_p, [_InitParams])
    number = function("ggml_new_tensor_1d", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64])
    reshape = function("ggml_reshape_1d", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64])
    new_graph = function("ggml_new_graph_custom", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool])
    add = function("ggml_build_forward_expand", None, [ctypes.c_void_p, ctypes.c_void_p])
    context = start(_InitParams(1 << 16, None, True))
    graph: int = new_graph(context, 4, False)
    add(graph, reshape(context, number(context, _api.GGML_TYPE_F32, 1), 1))
    return graph


class _InitParams(ctypes.Structure):
    """ggml_init_params"""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


# --- workers that go away


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

    if _workers:
        threading.Thread(target=watch, name="finesteer-workers", daemon=True).start()


def _gone() -> list[str]:
    return [worker.endpoint for worker in _workers.values() if any(map(_is_closed, worker.sockets))]


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
        _end(_gone() or [endpoint for endpoint in _workers if not _answers(endpoint)] or list(_workers))
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
