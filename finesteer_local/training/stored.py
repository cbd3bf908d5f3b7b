"""Matrices that take a byte a weight, with a scale an output row, and are multiplied in a floating-point type.

In bfloat16 a model of 1.5 billion parameters would take 3 GB. 8 bits are exact in it, so each product has its matrix in
bfloat16 for as long as it needs it: a tenth slower where many tokens are read together.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 127.0
TINY = 1e-12
_ROOM = 1 << 24
"""Numbers that are in the floating-point type at a time; a vocabulary's matrix has fifteen times as many."""
_rooms = threading.local()


def stored(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (n_out, n_in) in 8 bits, and the scale of each row, (n_out,), in bfloat16."""
    least = weight.abs().amax(1).clamp_(min=TINY).div_(LEVELS)
    scale = least.mul_(1 + 2**-7).to(torch.bfloat16)  # whichever way that is rounded, no level is beyond 127
    return torch.div(weight, scale.float()[:, None]).round_().to(torch.int8), scale


def product(inputs: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`inputs` (..., n_in) times a stored matrix, (..., n_out), in the type of the inputs."""
    found = [functional.linear(inputs, _opened(part, inputs.dtype)) for part in _parts(weight)]
    return (found[0] if len(found) == 1 else torch.cat(found, -1)).mul_(scale.to(inputs.dtype))


def _parts(weight: Tensor) -> tuple[Tensor, ...]:
    """Rows that are opened at a time."""
    return torch.split(weight, max(_ROOM // weight.shape[1], 1))


def _opened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored matrix without its scale, until this thread opens the next.

    The same room again and again: asking the system for as much takes longer than the product.
    """
    kept: Tensor | None = getattr(_rooms, "kept", None)
    if kept is None or kept.dtype != dtype or len(kept) < weight.numel():
        with torch.inference_mode(False):  # or it could not be written to outside that mode
            kept = _rooms.kept = torch.empty(weight.numel(), dtype=dtype)
    return kept[: weight.numel()].view(weight.shape).copy_(weight)


class _Product(torch.autograd.Function):
    """`product`, which is differentiated by its inputs; the matrix is opened again for that."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return product(inputs, weight, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        scaled = gradients[0] * scale.to(gradients[0].dtype)
        matrices = _parts(weight)
        parts = zip(torch.split(scaled, [len(each) for each in matrices], -1), matrices, strict=True)
        first, *others = (part @ _opened(matrix, scaled.dtype) for part, matrix in parts)
        return sum(others, first), None, None


class StoredLinear(nn.Module):
    """`nn.Linear` with a stored matrix, which does not learn."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = _Product.apply(inputs, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


class StoredEmbedding(nn.Module):
    """`nn.Embedding` with a stored matrix, in the type of `dtype`."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens].to(self.dtype) * self.scale[tokens].to(self.dtype)[..., None]
