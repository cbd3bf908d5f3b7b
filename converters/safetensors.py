"""The safetensors format: a JSON table of contents, then the tensors' bytes.

Read and written here in a few lines because the library hands bfloat16, in which many vectors are kept, to PyTorch
only. The tests hold both directions against the library itself.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.paths import atomic_write

from .foreign import refuse
from .jsonfile import parse_json

Array = NDArray[np.float32]

_MAX_HEADER = 1 << 24
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"} | {
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
}


def looks_like(head: bytes, size: int) -> bool:
    """Whether a file that begins with `head` and is `size` bytes long can be one."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors by name (bfloat16 as float32) and the metadata of the file at `path`.

    Raises:
        ProfileError: it is damaged; the message names the tensor.
        OSError: it cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        length = int.from_bytes(data[:8], "little")
        if not 2 <= length <= min(len(data) - 8, _MAX_HEADER):
            raise refuse(path, f"its table of contents would have {length:,} bytes")
        table = parse_json(path, data[8 : 8 + length], "its table of contents")
        body = data[8 + length :]  # a copy: the arrays outlive the file
    if not isinstance(table, dict):
        raise refuse(path, "its table of contents is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse(path, "its __metadata__ is not a table of texts")
    places = {name: _place(path, name, entry, len(body)) for name, entry in table.items()}
    if sum(stop - start for _, _, start, stop in places.values()) > len(body):
        raise refuse(path, "its tensors overlap")
    tensors: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape, start, _) in places.items():
        array = np.frombuffer(body, _TYPES[dtype], count=prod(shape), offset=start).reshape(shape)
        tensors[name] = from_bfloat16(array) if dtype == "BF16" else array
    return tensors, metadata


def _place(path: Path, name: str, entry: Any, n_bytes: int) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first byte and the byte after the last of a tensor in a body of `n_bytes`."""
    shown = f"tensor {name[:60]!r}"
    if not isinstance(entry, dict):
        raise refuse(path, f"{shown} is not described")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise refuse(path, f"{shown} has the type {str(dtype)[:20]!r}, which is not supported")
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= 4 and len(offsets) == 2):
        raise refuse(path, f"{shown} has a damaged shape or place")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, *offsets)):
        raise refuse(path, f"{shown} has a damaged shape or place")
    start, stop = offsets
    if not start <= stop <= n_bytes or stop - start != prod(shape) * np.dtype(_TYPES[dtype]).itemsize:
        raise refuse(path, f"{shown} does not lie inside the file, or is not as long as its shape says")
    return dtype, tuple(shape), start, stop


def from_bfloat16(array: NDArray[np.uint16]) -> Array:
    """bfloat16, given as its bits, is the upper half of a float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def write(path: str | Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write float32 `tensors`.

    Raises:
        StorageError: the file cannot be written.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in sorted(tensors):
        array = tensors[name]
        table[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors are aligned
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name], "<f4").tobytes())
