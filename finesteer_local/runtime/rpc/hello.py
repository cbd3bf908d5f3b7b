"""Asks a worker, before llama.cpp connects to it, whether it answers and which version it speaks."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import llama_cpp

from finesteer_local.errors import WorkerError

START = "finesteer-local worker --host ADDRESS --port"

_CONNECT, _ANSWER = 4.0, 4.0  # seconds
_HELLO = 14  # RPC_CMD_HELLO, "must be always 14"
_CAPABILITIES = bytes(24)  # rpc_msg_hello_req: none, plain TCP
_ENDPOINT = re.compile(r"([^\s:,]+):(\d{1,5})")


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


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
