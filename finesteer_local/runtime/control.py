"""llama.cpp's control vector."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError

Vectors = Mapping[int, NDArray[np.float32]]
"""layer -> (n_embd,), added to the hidden states of that layer."""


def same_vectors(a: Vectors, b: Vectors) -> bool:
    """Whether both add the same to every layer."""
    return a is b or (a.keys() == b.keys() and all(np.array_equal(a[layer], b[layer]) for layer in a))


def set_control_vector(ctx: Any, vectors: Vectors, *, n_layer: int, n_embd: int) -> None:
    """Make `vectors` the control vector of a llama_context; none takes it away (`llama_set_adapter_cvec`).

    Every call makes the scheduler reserve its buffers again, some milliseconds on the next token.

    Raises:
        SteeringError: llama.cpp refuses it.
    """
    if vectors:
        data = np.zeros((n_layer - 1, n_embd), np.float32)  # llama.cpp's first row is layer 1
        for layer, vector in vectors.items():
            data[layer - 1] = vector
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        status = llama_cpp.llama_set_adapter_cvec(ctx, pointer, data.size, n_embd, min(vectors), max(vectors))
    else:
        status = llama_cpp.llama_set_adapter_cvec(ctx, None, 0, n_embd, 0, 0)
    if status:
        raise SteeringError("llama.cpp refused the control vector; nothing was generated")


class ControlVector:
    """The control vector of one llama_context, which has none at first."""

    def __init__(self, ctx: Any, *, n_layer: int, n_embd: int) -> None:
        self._ctx, self._sizes = ctx, {"n_layer": n_layer, "n_embd": n_embd}
        self.vectors: Vectors = {}

    def set(self, vectors: Vectors) -> None:
        """Make it `vectors`; a no-op where it is already. Errors as for `set_control_vector`."""
        if not same_vectors(vectors, self.vectors):
            set_control_vector(self._ctx, vectors, **self._sizes)
            self.vectors = vectors
