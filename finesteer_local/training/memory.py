"""Keeps a training's memory to what it uses.

Two things grew beyond that: oneDNN keeps a program for each shape of a product in bfloat16 that it has met, up to
1,024 of some .6 MB (half as much again as all of `smollm2`'s training), though few are met twice; and glibc keeps what
threads have freed. Bounding the first costs no time, nor does giving back the second between stages.
"""

from __future__ import annotations

import ctypes
import os
import sys

PROGRAMS = 128
"""That oneDNN keeps, and PyTorch beside it."""
_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_caches() -> None:
    """Have oneDNN keep no more than `PROGRAMS`; before the first product, when it looks. Who set a number keeps it."""
    for name in _VARIABLES:
        os.environ.setdefault(name, str(PROGRAMS))


def give_back() -> None:
    """Return to the system what is free, where the C library does not by itself (glibc)."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
