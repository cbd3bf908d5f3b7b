"""PyTorch's `.pt` files, read without PyTorch and without unpickling.

A `.pt` file is a zip archive: raw tensor data, and a pickle that says what the tensors are called. A pickle is a
program. `pickletools.genops` lists its instructions without running any, and the handful that a state dict or a
dataclass of tensors needs are followed here on values that can do nothing; the first other one ends the reading.
`torch.load(weights_only=True)` would need PyTorch for every import, was itself escaped from (CVE-2025-32434, up to
2.5.1), and cannot read the steering-vectors library's own class without importing it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import ProfileError

from .foreign import refuse
from .safetensors import from_bfloat16

_MAX_PICKLE = 1 << 20
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"
RECORDS = ("steering_vectors.steering_vector SteeringVector",)
"""Classes whose objects are taken as what they hold: their fields, without the class."""


@dataclass(frozen=True)
class Name:
    """A global that the pickle refers to. It is never looked up."""

    text: str  # module, blank, name


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    n_items: int


@dataclass(frozen=True)
class _TensorPlace:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Record:
    """An object of one of the classes in `RECORDS`: its class and its fields."""

    of: str
    fields: dict[Any, Any]


def parse(path: Path, files: Mapping[str, bytes]) -> Any:
    """What the archive's files hold: dicts, lists, texts, numbers, `Record`s, and NumPy arrays in place of tensors.

    Raises:
        ProfileError: it is damaged, or its pickle does anything but hold tensors; the message says what.
    """
    pickles = [name for name in files if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise refuse(path, "it is no file of torch.save: there is no data.pkl in it")
    folder = pickles[0].removesuffix("data.pkl")
    order = files.get(f"{folder}byteorder", b"little").strip()
    if order not in (b"little", b"big"):
        raise refuse(path, "its byteorder is neither little nor big")
    program = files[pickles[0]]
    if len(program) > _MAX_PICKLE:
        raise refuse(path, f"its data.pkl has {len(program):,} bytes; a steering vector's has a few thousand")
    value = _Machine(path).run(program)
    return _Filler(path, files, folder, "<" if order == b"little" else ">").fill(value, 0)


class _Machine:
    """Follows the instructions of a pickle as far as they only describe values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(program):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except ProfileError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise refuse(self.path, "its data.pkl is damaged") from error
        raise refuse(self.path, "its data.pkl is cut short")

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
        if name in constants:
            self.stack.append(constants[name])
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"):
            self.stack.append(argument)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            self.stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "TUPLE":
            self.stack.append(tuple(self.since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            items = [self.stack.pop() for _ in range(n)]
            self.stack.append(tuple(reversed(items)))
        elif name in ("APPEND", "APPENDS"):
            items = [self.stack.pop()] if name == "APPEND" else self.since_mark()
            self.a(list, self.stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop(2) if name == "SETITEM" else self.since_mark())
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(self.named(argument if name == "GLOBAL" else " ".join(self.pop(2))))
        elif name == "BINPERSID":
            self.stack.append(self.storage(self.stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self.pop(2)
            self.stack.append(self.made(function, arguments))
        elif name == "BUILD":
            self.build(self.stack.pop())
        else:
            raise refuse(self.path, f"its pickle has the instruction {name}, which a file of tensors does not need")

    def pop(self, n: int) -> list[Any]:
        items = [self.stack.pop() for _ in range(n)]
        return items[::-1]

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def a(self, kind: type[Any], value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"{kind.__name__} expected")
        return value

    def set_items(self, items: list[Any]) -> None:
        target = self.a(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # a nested tuple takes for ever to hash
                raise TypeError("a key that is neither text nor number")
            target[key] = value

    def named(self, text: str) -> Name:
        module, _, name = text.partition(" ")
        known = (_REBUILD, _PARAMETER, _ORDERED, *RECORDS)
        if text not in known and not (module == "torch" and name in _STORAGES):
            raise refuse(
                self.path,
                f"its pickle names {module[:60]}.{name[:60]}, which is not data; nothing of it was run. "
                "Save the vectors as safetensors instead",
            )
        return Name(text)

    def storage(self, identity: Any) -> _Storage:
        kind, name, key, _, n_items = self.a(tuple, identity)
        if kind != "storage" or not isinstance(name, Name) or not isinstance(key, str) or type(n_items) is not int:
            raise TypeError("a storage expected")
        return _Storage(_STORAGES[name.text.partition(" ")[2]], key, n_items)

    def made(self, function: Any, arguments: Any) -> Any:
        text = self.a(Name, function).text
        self.a(tuple, arguments)
        if text == _ORDERED and not arguments:
            return {}
        if text == _PARAMETER:
            return self.a(_TensorPlace, arguments[0])
        if text in RECORDS and not arguments:
            return Record(text, {})
        if text != _REBUILD:
            raise TypeError("not a tensor")
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *self.a(tuple, shape), *self.a(tuple, strides))
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers) or not len(shape) == len(strides) <= 4:
            raise ValueError("a damaged shape")
        return _TensorPlace(self.a(_Storage, storage), offset, shape, strides)

    def build(self, state: Any) -> None:
        """Set an object's fields; what a state dict carries beside its items (`_metadata`) is left out."""
        target = self.stack[-1]
        if isinstance(target, Record):
            target.fields.update(self.a(dict, state))
        else:
            self.a(dict, target)
            self.a(dict, state)


class _Filler:
    """Puts arrays in the places of tensors."""

    def __init__(self, path: Path, files: Mapping[str, bytes], folder: str, order: str) -> None:
        self.path, self.files, self.folder, self.order = path, files, folder, order
        self.items_left = sum(map(len, files.values()))  # the smallest item is a byte
        self.values_left = 10_000

    def fill(self, value: Any, depth: int) -> Any:
        self.values_left -= 1
        if depth > 8 or self.values_left < 0:
            raise refuse(self.path, "its values are nested deeper, or are more, than any steering vector's")
        inside: Callable[[Any], Any] = lambda part: self.fill(part, depth + 1)  # noqa: E731
        if isinstance(value, _TensorPlace):
            return self.tensor(value)
        if isinstance(value, dict):
            return {key: inside(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [inside(part) for part in value]
        if isinstance(value, Record):
            return Record(value.of, inside(value.fields))
        return value if isinstance(value, (str, int, float, bool)) else None

    def tensor(self, place: _TensorPlace) -> NDArray[Any]:
        storage, n_items = place.storage, prod(place.shape)
        data = self.files.get(f"{self.folder}data/{storage.key}")
        dtype = np.dtype(self.order + storage.kind)
        if data is None or len(data) != storage.n_items * dtype.itemsize:
            raise refuse(self.path, f"the data of storage {storage.key[:20]!r} is missing or has the wrong length")
        last = place.offset + sum((n - 1) * step for n, step in zip(place.shape, place.strides, strict=True))
        self.items_left -= n_items
        if n_items == 0 or last >= storage.n_items or self.items_left < 0:
            raise refuse(self.path, f"a tensor of shape {' x '.join(map(str, place.shape))} reaches past its data")
        strides = tuple(step * dtype.itemsize for step in place.strides)
        view = np.ndarray(place.shape, dtype, data, place.offset * dtype.itemsize, strides)
        array = np.array(view, dtype.newbyteorder("="))
        return from_bfloat16(array) if storage.kind == "u2" else array
