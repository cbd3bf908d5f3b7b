"""The graphs that workers keep.

A worker keeps the last graph that it computed, so that the next token need not send it again, and forgets it whenever a
buffer is freed; the program does not hear of that, asks for the graph, and is hung up on. So whenever a context or a
model goes, every worker gets another graph to compute, and the next token sends its own anew.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import Any

from llama_cpp import llama_cpp as _api

from finesteer_local.runtime.ggml import function

_backends: list[int] = []  # a ggml_backend_t a device, never freed: they keep a worker's one connection open
_one_at_a_time = threading.RLock()
"""Reentrant: the garbage collector may free a model in a callback of the graph that is computed."""


def watch(backends: Iterable[int]) -> None:
    """Keep the graphs of these devices right, whatever llama-cpp-python or the garbage collector frees."""
    _backends.extend(backends)
    _watch_calls()


@cache
def _watch_calls() -> None:
    for name in ("llama_free", "llama_model_free"):
        setattr(_api, name, _then_forget(getattr(_api, name)))
    for name in ("llama_decode", "llama_encode"):
        setattr(_api, name, _alone(getattr(_api, name)))


def _then_forget(free: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(free)
    def freed(pointer: Any) -> None:
        if sys.is_finalizing():  # nobody computes any more
            free(pointer)
            return
        with _one_at_a_time:
            free(pointer)
            _forget_graphs()

    return freed


def _alone(compute: Callable[[Any, Any], int]) -> Callable[[Any, Any], int]:
    @wraps(compute)
    def computed(context: Any, batch: Any) -> int:
        with _one_at_a_time:
            return compute(context, batch)

    return computed


def _forget_graphs() -> None:
    """Have every device of every worker compute nothing, as a graph of its own.

    ggml-rpc.cpp asks a device for the graph that it keeps where that was the last one computed there, by its number
    (`ggml_backend_rpc_graph_compute`); `rpc_server::free_buffer` drops it. Graphs made by hand have no number.
    """
    for backend in _backends:
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
