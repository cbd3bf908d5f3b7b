"""Keeps a training's memory to what it uses.

Three things grew beyond that: oneDNN keeps a program for each shape of a product in bfloat16 that it has met, up to
1,024 of some .6 MB (half as much again as all of `smollm2`'s training), though few are met twice; glibc keeps what
threads have freed; and the pages of a model's file that llama.cpp has read stay the process's own, though PyTorch
computes. Bounding the first costs no time, nor does giving back the others between stages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

PROGRAMS = 128
"""That oneDNN keeps, and PyTorch beside it."""
_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_caches() -> None:
    """Have oneDNN keep no more than `PROGRAMS`; before the first product, when it looks. Who set a number keeps it."""
    for name in _VARIABLES:
        os.environ.setdefault(name, str(PROGRAMS))


def give_back() -> None:
    """Return to the system what is free, where the C library does not by itself (glibc), and what was read of GGUF
    files: those pages come back when they are read again, from the system's own memory as long as it has room."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    for start, stop in _read_from_files():
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _read_from_files() -> list[tuple[int, int]]:
    """Addresses at which GGUF files are mapped for reading alone: nothing there is lost."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        place, rights, *_, name = line.split(maxsplit=5)
        if rights.startswith("r--") and name.endswith(".gguf"):
            start, stop = (int(each, 16) for each in place.split("-"))
            found.append((start, stop))
    return found
