"""Workers on this machine, and models that lie on them."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from llama_cpp import Llama, llama_cpp

from cli import command_line
from finesteer_local.runtime import machine
from finesteer_local.runtime.ggml import function
from finesteer_local.runtime.rpc import INSTALL, procedure, use_workers

needs_rpc = pytest.mark.skipif(not llama_cpp.llama_supports_rpc(), reason=f"llama-cpp-python has no RPC: {INSTALL}")

# Whoever still has a model on a worker when it ends is ended by llama.cpp: this worker outlives the tests, and ends
# when the process that holds the other end of its pipe is gone.
_UNTIL_WE_END = '"$@" & read -r _; kill $!'


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def worker_process(port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker that listens, and its endpoint, for the block."""
    command = command_line("worker", "--port", str(port), "--threads", "1")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process, _endpoint(process)
    finally:
        process.kill()
        process.communicate()


def lasting_worker() -> str:
    """The endpoint of a worker that ends after this process."""
    read, _write = os.pipe()  # never closed here
    process = subprocess.Popen(
        ["sh", "-c", _UNTIL_WE_END, "sh", *command_line("worker", "--port", "0", "--threads", "1")],
        stdin=read,
        stdout=subprocess.PIPE,
    )
    os.close(read)
    return _endpoint(process)


def _endpoint(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(rb"\S+:\d+$", line.strip()):
            assert b"Ready" in process.stdout.readline()
            return match[0].decode()
    raise AssertionError("the worker does not listen")


@contextmanager
def on_worker(*endpoints: str) -> Iterator[None]:
    """In the block, models that are opened and do not say where have all their layers on these workers."""
    use_workers(endpoints)
    register = function("ggml_backend_register", None, [ctypes.c_void_p])
    unload = function("ggml_backend_unload", None, [ctypes.c_void_p])
    rpc = function("ggml_backend_reg_by_name", ctypes.c_void_p, [ctypes.c_char_p])(b"RPC")
    add = procedure("ggml_backend_rpc_add_server", ctypes.c_void_p, [ctypes.c_char_p])
    registries = [add(endpoint.encode()) for endpoint in endpoints]
    for registry in registries:  # where an earlier block has taken them away
        register(registry)
    names = {device.description for device in machine.devices() if device.kind == "other machine"}
    assert names == set(endpoints)
    try:
        with everything_offloaded():
            yield
    finally:
        for registry in (*registries, rpc):  # the devices belong to the last
            unload(registry)
        register(rpc)


@contextmanager
def everything_offloaded() -> Iterator[None]:
    """In the block, models that are opened and do not say where have no layer in this process's memory."""
    defaults = Llama.__init__.__kwdefaults__
    before, defaults["n_gpu_layers"] = defaults["n_gpu_layers"], -1
    try:
        yield
    finally:
        defaults["n_gpu_layers"] = before
