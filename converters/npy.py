"""NumPy's `.npy` and `.npz`, read without NumPy's own loader.

NumPy's loader evaluates the header as Python, unpickles on request, and reads as much as the header asks for. This one
takes only a header that matches a pattern, and only data that is exactly as long as the header says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .foreign import refuse

MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{'descr': '([<>|=])([a-zA-Z])([0-9]{1,3})', 'fortran_order': (True|False), "
    r"'shape': \(([0-9, ]{0,80})\), ?\} *\n?"
)
_ITEMS = {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}


def parse(path: Path, name: str, data: bytes | memoryview) -> NDArray[Any]:
    """The array in the bytes of a `.npy` file; it shares their memory.

    Raises:
        ProfileError: it is damaged, holds Python objects, or is not as long as it says.
    """
    head = bytes(data[:12])
    if head[:6] != MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise refuse(path, f"{name} is not an array of NumPy's, or cut short")
    short = head[6] == 1
    length = int.from_bytes(head[8:10] if short else head[8:12], "little")
    start = 10 if short else 12
    header = bytes(data[start : start + length]) if length <= 1 << 16 else b""
    match = _HEADER.fullmatch(header.decode("latin-1").rstrip(" \n"))
    if match is None:
        # What NumPy saves as objects is a pickle; its type is written as '|O'.
        objects = b"'|O'" in header
        raise refuse(path, f"{name} holds a pickle, which is never loaded" if objects else f"{name}: damaged header")
    order, kind, size, fortran, dimensions = match.groups()
    if int(size) not in _ITEMS.get(kind, ()):
        raise refuse(path, f"{name} holds items of type {kind}{size}, expected numbers")
    numbers = [part.strip() for part in dimensions.split(",")]
    if not all(part.isdigit() and len(part) <= 12 for part in (*numbers[:-1], numbers[-1] or "0")):
        raise refuse(path, f"{name} has a damaged shape")
    shape = tuple(int(part) for part in numbers if part)
    items = prod(shape)
    body = data[start + length :]
    if len(shape) > 4 or items * int(size) != len(body):
        raise refuse(path, f"{name} says it has shape {' x '.join(map(str, shape))}, which does not fit its length")
    dtype = np.dtype(f"{'<' if order in '|=' else order}{kind}{size}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran == "True" else "C")


def from_archive(path: Path, files: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` file by name, from the files in it.

    Raises:
        ProfileError: it holds anything but arrays.
    """
    arrays = {}
    for name, data in files.items():
        stem = name.removesuffix(".npy")
        if stem == name:
            raise refuse(path, f"{name[:60]!r} in it is no array of NumPy's")
        arrays[stem] = parse(path, f"the array {stem[:60]!r}", data)
    return arrays
