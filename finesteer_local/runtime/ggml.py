"""Functions of ggml that llama-cpp-python does not wrap, by their exported names alone."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as _api

from finesteer_local.errors import SteeringError


def function(name: str, restype: Any, argtypes: list[Any]) -> Any:
    """A function of ggml, from whichever of llama-cpp-python's shared libraries exports it.

    Raises:
        SteeringError: none does.
    """
    from llama_cpp import _ctypes_extensions, _ggml

    folder = Path(llama_cpp.__file__).parent / "lib"
    for library in (
        lambda: _api._lib,
        lambda: _ggml.libggml,
        lambda: _ctypes_extensions.load_shared_library("ggml-base", folder),
    ):
        try:
            found = getattr(library(), name)  # type: ignore[no-untyped-call]
        except (AttributeError, FileNotFoundError, OSError, RuntimeError):
            continue
        # A private copy: setting argtypes on the shared attribute would change it for llama-cpp-python too.
        address = ctypes.cast(found, ctypes.c_void_p).value
        assert address is not None
        return ctypes.CFUNCTYPE(restype, *argtypes)(address)
    raise SteeringError(f"this build of llama-cpp-python does not export {name}; reinstall llama-cpp-python")
