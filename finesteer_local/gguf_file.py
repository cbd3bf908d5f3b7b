"""Opening a GGUF file that nobody vouches for.

The gguf package believes what a header claims: one damaged array length keeps it busy until the memory is full, and an
array of numbers costs it a hundred times its size. So the header is read here first, every count, length and place held
against the file's size, in the layout of llama.cpp's gguf.cpp (`gguf_init_from_reader`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType

_VERSIONS = (2, 3)
_MAX_NAME = 64  # GGML_MAX_NAME
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_KEYS = 1 << 16
_LONG_LIST = 4096  # items
_LAYOUTS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


class DamagedGGUF(ValueError):
    """A file that is not what its header claims; `problem` says it without the file's name."""

    def __init__(self, path: Path, where: str, not_utf8: bool) -> None:
        at = f"at {where!r} " if where else ""
        self.problem = f"{at}it holds a text that is not UTF-8" if not_utf8 else f"{at}it is damaged or cut short"
        super().__init__(f"{path}: {self.problem}")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file."""

    shape: tuple[int, ...]  # rows first, as numpy has it
    kind: GGMLQuantizationType
    start: int  # byte in the file
    n_bytes: int


@dataclass
class Header:
    """What a GGUF file says of itself; all of it fits into the file."""

    values: dict[str, Any] = field(default_factory=dict)  # numbers and texts
    arrays: dict[str, tuple[GGUFValueType, int]] = field(default_factory=dict)  # type and number of the items
    tensors: dict[str, TensorInfo] = field(default_factory=dict)


def read_header(path: Path, *, max_items: int) -> Header:
    """Read the header of the GGUF file at `path`; it may hold `max_items` keys, array items and tensors altogether.

    Raises:
        DamagedGGUF: it is damaged, cut short, or larger than that.
        OSError: it cannot be read.
    """
    with _walking(path, max_items) as walk:
        return walk.header()


def read_keys(path: Path) -> Header:
    """Read the values that come before the vocabulary, and everything where the vocabulary is small.

    All writers put a model's own keys (`general.*`, then those of its architecture) before the tokenizer's, whose lists
    of hundreds of thousands of texts take longer to step over than all the rest.

    Raises:
        DamagedGGUF: it is damaged or cut short before that.
        OSError: it cannot be read.
    """
    with _walking(path, _MAX_KEYS) as walk:
        return walk.header(_LONG_LIST)


def open_gguf(path: Path, *, max_items: int) -> GGUFReader:
    """As `read_header`, but gives the gguf package's reader, with all values and tensors.

    Raises:
        DamagedGGUF, OSError: see `read_header`.
    """
    with _walking(path, max_items) as walk:
        walk.header()
        return GGUFReader(path)


@contextmanager
def _walking(path: Path, max_items: int) -> Iterator[_Walk]:
    where = None
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            where = _Walk(data, max_items)
            yield where
    except OSError:
        raise
    except Exception as error:  # whatever the header claims
        raise DamagedGGUF(path, where.field if where else "", isinstance(error, UnicodeDecodeError)) from error


class _Walk:
    """Walks over the header of a GGUF file and raises `ValueError` or `struct.error` where it cannot be right."""

    def __init__(self, data: mmap.mmap, max_items: int) -> None:
        self.data, self.at, self.items_left = data, 0, max_items
        self.field = ""  # the key or tensor being read, for messages

    def header(self, longest: int | None = None) -> Header:
        """The header, or what comes before the first list of texts that has more than `longest` of them."""
        header = Header()
        self.skip(4)  # the magic, which the caller knows
        version, n_tensors, n_keys = self.take("<IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"unknown version {version}")
        self.count(n_tensors + n_keys)
        for _ in range(n_keys):
            self.field = key = self.text()
            if key in header.values or key in header.arrays:
                raise ValueError(f"twice the key {key}")
            kind = GGUFValueType(*self.take("<I"))
            if kind == GGUFValueType.ARRAY:
                if longest is not None and self.ahead() > longest:
                    return header
                header.arrays[key] = self.array()
            else:
                header.values[key] = self.text() if kind == GGUFValueType.STRING else self.take(_LAYOUTS[kind])[0]
        self.tensors(n_tensors, header)
        return header

    def tensors(self, n_tensors: int, header: Header) -> None:
        self.field = "the tensors"
        found = [self.tensor() for _ in range(n_tensors)]
        alignment = header.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError("the alignment is not a power of two")
        start = -(-self.at // alignment) * alignment
        for name, shape, kind, offset in found:
            self.field = name
            block, size = GGML_QUANT_SIZES[kind]
            if shape and shape[-1] % block:
                raise ValueError(f"a row of tensor {name} is no whole number of blocks")
            info = TensorInfo(shape, kind, start + offset, prod(shape) // block * size)
            if name in header.tensors or info.start + info.n_bytes > len(self.data):
                raise ValueError(f"tensor {name} is there twice or reaches past the end of the file")
            header.tensors[name] = info

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        self.field = name = self.text()
        (n_dims,) = self.take("<I")
        if len(name.encode()) >= _MAX_NAME or n_dims > _MAX_DIMS:
            raise ValueError("a tensor's name or shape is too long")
        shape = self.take(f"<{n_dims}Q")
        kind, offset = self.take("<IQ")
        return name, shape[::-1], GGMLQuantizationType(kind), offset

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def count(self, n: int) -> None:
        self.items_left -= n
        if self.items_left < 0:
            raise ValueError("too many items")

    def skip(self, n_bytes: int) -> None:
        self.at += n_bytes
        if self.at > len(self.data):
            raise ValueError("a value reaches past the end of the file")

    def text(self) -> str:
        (length,) = self.take("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode()

    def ahead(self) -> int:
        """How many texts the list has that begins here; 0 for a list of anything else."""
        number, n_items = struct.unpack_from("<IQ", self.data, self.at)
        return n_items if number == GGUFValueType.STRING else 0

    def array(self) -> tuple[GGUFValueType, int]:
        number, n_items = self.take("<IQ")
        kind = GGUFValueType(number)
        self.count(n_items)
        if kind == GGUFValueType.STRING:
            # A vocabulary has hundreds of thousands of them: nothing in this loop but what must be.
            data, at, length = self.data, self.at, struct.Struct("<Q").unpack_from
            for _ in range(n_items):
                at += 8 + length(data, at)[0]
            self.at = at
            self.skip(0)
        else:
            self.skip(n_items * struct.calcsize(_LAYOUTS[kind]))  # an array of arrays has no layout
        return kind, n_items
