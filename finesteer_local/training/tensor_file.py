"""What a GGUF file says of a transformer's layers, and its tensors as numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, dequantize
from numpy.typing import NDArray
from torch import Tensor

from finesteer_local.errors import ModelError
from finesteer_local.gguf_file import DamagedGGUF, Header, TensorInfo, read_header

ARCHITECTURES = {MODEL_ARCH_NAMES[each]: each for each in (MODEL_ARCH.LLAMA, MODEL_ARCH.QWEN2, MODEL_ARCH.QWEN3)}
_MAX_ITEMS = 1 << 24


class Shape(NamedTuple):
    """What a model's metadata says of its layers."""

    n_embd: int
    n_heads: int
    n_groups: int  # heads of keys and values
    n_rot: int  # of a head, all of which are rotated
    epsilon: float
    base: float
    architecture: MODEL_ARCH

    @property
    def paired(self) -> bool:
        """Whether neighbouring numbers of a head are rotated together, not its halves (llama.cpp:
        LLAMA_ROPE_TYPE_NORM)."""
        return self.architecture == MODEL_ARCH.LLAMA

    @property
    def share(self) -> int:
        """Heads that read the same keys and values."""
        return self.n_heads // self.n_groups

    @classmethod
    def of(cls, header: Header) -> Shape:
        architecture = header.values["general.architecture"]
        if architecture not in ARCHITECTURES:
            raise ModelError(f"the architecture {architecture} is not read in PyTorch")

        def value(key: str, default: Any = None) -> Any:
            return header.values.get(f"{architecture}.{key}", default)

        n_embd, n_heads = int(value("embedding_length")), int(value("attention.head_count"))
        n_rot = int(value("attention.key_length", n_embd // n_heads))
        if value("rope.scaling.type", "none") != "none" or int(value("rope.dimension_count", n_rot)) != n_rot:
            raise ModelError("positions that are scaled or rotate in part are not read in PyTorch")
        return cls(
            n_embd=n_embd,
            n_heads=n_heads,
            n_groups=int(value("attention.head_count_kv", n_heads)),
            n_rot=n_rot,
            epsilon=float(value("attention.layer_norm_rms_epsilon")),
            base=float(value("rope.freq_base", 10_000.0)),
            architecture=ARCHITECTURES[architecture],
        )


def is_known(path: Path) -> bool:
    """Whether the layers of the GGUF model at `path` are of a shape that is known here."""
    try:
        Shape.of(TensorFile(path).header)
    except ModelError:
        return False
    return True


class TensorFile:
    """The tensors of a GGUF file, dequantised one at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self.header = read_header(path, max_items=_MAX_ITEMS)
        except DamagedGGUF as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        self._path = path
        self.forget()

    def forget(self) -> None:
        """Let what was read go: mapped pages count as the process's memory as long as they are mapped."""
        self._bytes = np.memmap(self._path, np.uint8, "r")

    def has(self, name: str) -> bool:
        return name in self.header.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor; (n_out, n_in) of a matrix."""
        return self._tensor(name).shape

    def n_weights(self, top: int) -> int:
        """Of layers 0 to `top`, nearly all of them in matrices."""
        layers = tuple(f"blk.{index}." for index in range(top + 1))
        return sum(math.prod(each.shape) for name, each in self.header.tensors.items() if name.startswith(layers))

    def rows(self, name: str, rows: NDArray[np.intp] | None = None) -> Tensor:
        """A tensor, or some rows of it, as float32."""
        tensor = self._tensor(name)
        data = self._bytes[tensor.start : tensor.start + tensor.n_bytes].reshape(tensor.shape[0], -1)
        numbers = data if rows is None else data[rows]
        if tensor.kind.name in ("F32", "F16"):  # gguf's dequantize wants these typed
            numbers = np.ascontiguousarray(numbers).view(np.float32 if tensor.kind.name == "F32" else np.float16)
        found = np.array(dequantize(np.ascontiguousarray(numbers), tensor.kind), np.float32)
        return torch.from_numpy(found if len(tensor.shape) > 1 else found.reshape(-1))

    def _tensor(self, name: str) -> TensorInfo:
        try:
            return self.header.tensors[name]
        except KeyError as error:
            raise ModelError(f"the model has no tensor {name}") from error
