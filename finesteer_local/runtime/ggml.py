"""Functions of ggml that llama-cpp-python does not wrap, by their exported names alone."""

from __future__ import annotations

import ctypes
from typing import Any

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.compat import libraries


def function(name: str, restype: Any, argtypes: list[Any]) -> Any:
    """A function of ggml, from whichever of llama-cpp-python's shared libraries exports it.

    Raises:
        SteeringError: none does.
    """
    for library in libraries():
        try:
            found = getattr(library, name)
        except AttributeError:
            continue
        # A private copy: setting argtypes on the shared attribute would change it for llama-cpp-python too.
        address = ctypes.cast(found, ctypes.c_void_p).value
        assert address is not None
        return ctypes.CFUNCTYPE(restype, *argtypes)(address)
    raise SteeringError(f"this build of llama-cpp-python does not export {name}; reinstall llama-cpp-python")
