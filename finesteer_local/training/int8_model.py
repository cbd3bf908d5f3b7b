"""The lower layers of a GGUF model in PyTorch, in 8 bits: for reading thousands of prompts on a processor.

llama.cpp's kernels multiply most quantisations of small models far below what a processor can do: a tenth of it for
Q5_0 and Q4_1 with AVX-512. Here every matrix is in 8 bits with one scale an output row, every input in 8 bits with one
scale a token, and oneDNN multiplies them. An input channel of large activations would cost a token's other channels
their precision; its range is moved into the weights first (SmoothQuant, arXiv 2211.10438), layer by layer, on a sample
of the prompts. Only the layers that are asked for are built, one at a time: they take a byte a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import dequantize
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finesteer_local.errors import ModelError
from finesteer_local.gguf_file import DamagedGGUF, Header, read_header

_PAIRED = "llama"  # rotates neighbouring numbers of a head; the others its two halves (llama.cpp: LLAMA_ROPE_TYPE_NORM)
ARCHITECTURES = (_PAIRED, "qwen2", "qwen3")
_MAX_ITEMS = 1 << 24
_MOVED = 0.55  # how much of the range of inputs the weights get: alpha of SmoothQuant
_LEVELS = 127.0
_TINY = 1e-12
BLOCK = 64
"""Tokens that look together; fewer are multiplied less efficiently, more look at too much."""


class _Shape(NamedTuple):
    """What a model's metadata says of its layers."""

    n_embd: int
    n_heads: int
    n_groups: int  # heads of keys and values
    n_rot: int  # of a head, all of which are rotated
    epsilon: float
    base: float
    paired: bool

    @property
    def share(self) -> int:
        """Heads that read the same keys and values."""
        return self.n_heads // self.n_groups

    @classmethod
    def of(cls, header: Header) -> _Shape:
        architecture = header.values["general.architecture"]
        if architecture not in ARCHITECTURES:
            raise ModelError(f"the architecture {architecture} is not read in 8 bits")

        def value(key: str, default: Any = None) -> Any:
            return header.values.get(f"{architecture}.{key}", default)

        n_embd, n_heads = int(value("embedding_length")), int(value("attention.head_count"))
        n_rot = int(value("attention.key_length", n_embd // n_heads))
        if value("rope.scaling.type", "none") != "none" or int(value("rope.dimension_count", n_rot)) != n_rot:
            raise ModelError("positions that are scaled or rotate in part are not read in 8 bits")
        return cls(
            n_embd=n_embd,
            n_heads=n_heads,
            n_groups=int(value("attention.head_count_kv", n_heads)),
            n_rot=n_rot,
            epsilon=float(value("attention.layer_norm_rms_epsilon")),
            base=float(value("rope.freq_base", 10_000.0)),
            paired=architecture == _PAIRED,
        )


class _File:
    """The tensors of a GGUF file, dequantised one at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self.header = read_header(path, max_items=_MAX_ITEMS)
        except DamagedGGUF as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        self._bytes = np.memmap(path, np.uint8, "r")

    def has(self, name: str) -> bool:
        return name in self.header.tensors

    def rows(self, name: str, rows: NDArray[np.intp] | None = None) -> Tensor:
        """A tensor, or some rows of it, as float32."""
        try:
            tensor = self.header.tensors[name]
        except KeyError as error:
            raise ModelError(f"the model has no tensor {name}") from error
        data = self._bytes[tensor.start : tensor.start + tensor.n_bytes].reshape(tensor.shape[0], -1)
        numbers = data if rows is None else data[rows]
        if tensor.kind.name in ("F32", "F16"):  # gguf's dequantize wants these typed
            numbers = np.ascontiguousarray(numbers).view(np.float32 if tensor.kind.name == "F32" else np.float16)
        found = np.array(dequantize(np.ascontiguousarray(numbers), tensor.kind), np.float32)
        return torch.from_numpy(found if len(tensor.shape) > 1 else found.reshape(-1))


class _Float:
    """A matrix (n_out, n_in) with a bias (n_out,), in float32, which notes how large its inputs are."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self.greatest = torch.zeros(weight.shape[1])

    def __call__(self, inputs: Tensor) -> Tensor:
        self.greatest = torch.maximum(self.greatest, inputs.abs().amax(0))
        return functional.linear(inputs, self.weight, self.bias)

    def balance(self, shared: Callable[[Tensor], Tensor] = lambda scale: scale) -> Tensor:
        """Move the range of inputs into the weights; gives what each input is to be divided by, (n_in,).

        Args:
            shared: makes inputs that cannot be divided apart have one divisor.
        """
        scale = self.greatest.clamp(min=_TINY) ** _MOVED / self.weight.abs().amax(0).clamp(min=_TINY) ** (1 - _MOVED)
        scale = shared(scale.clamp(min=_TINY))
        self.weight = self.weight * scale
        return scale


class _Int8:
    """A matrix (n_out, n_in) in 8 bits, with a bias (n_out,) in float32."""

    def __init__(self, source: _Float) -> None:
        self.scale = source.weight.abs().amax(1).clamp_(min=_TINY).div_(_LEVELS)
        self.weight = torch.div(source.weight, self.scale[:, None]).round_().to(torch.int8).t().contiguous()
        self.bias = source.bias

    def __call__(self, inputs: Tensor) -> Tensor:
        # Not `aminmax`, which takes eight times as long over a row.
        greatest = torch.maximum(inputs.amax(-1, keepdim=True), inputs.amin(-1, keepdim=True).neg_())
        scale = greatest.clamp_(min=_TINY).div_(_LEVELS)
        levels = torch.div(inputs, scale).round_().to(torch.int8)
        out = torch.mul(torch._int_mm(levels, self.weight), self.scale).mul_(scale)
        return out if self.bias is None else out.add_(self.bias)


class Past(NamedTuple):
    """Keys and values of what all prompts begin with, each (n_groups, n, n_rot)."""

    keys: Tensor
    values: Tensor


class Places(NamedTuple):
    """Where a batch's tokens stand, and what each sees.

    Most sequences are much shorter than a batch, so the tokens look in blocks: each of them only at what one of its own
    tokens sees.

    Attributes:
        turns: e to the i times every angle of rotation, (n, n_rot / 2).
        columns: of the past and the batch, what each block looks at, (n_blocks, n_columns).
        sees: 0 where a token looks, -inf where not, (n_blocks, 1, share * BLOCK, n_columns): once for each of the heads
            that share keys and values.
    """

    turns: Tensor
    columns: Tensor
    sees: Tensor


class _Layer:
    """One block: attention and a gated feed-forward network, each behind an RMS norm."""

    def __init__(self, file: _File, index: int, shape: _Shape) -> None:
        def named(name: str) -> Tensor:
            return file.rows(f"blk.{index}.{name}")

        def maybe(name: str) -> Tensor | None:
            return named(name) if file.has(f"blk.{index}.{name}") else None

        def paired(found: Tensor | None, part: str) -> Tensor | None:
            """What makes queries and keys, so that the numbers that are rotated together are neighbours."""
            if found is None or shape.paired or part == "v":
                return found
            halves = found.view(-1, 2, shape.n_rot // 2, *found.shape[1:])
            return halves.transpose(1, 2).reshape(found.shape)

        self.shape = shape
        self.head_norms = paired(maybe("attn_q_norm.weight"), "q"), paired(maybe("attn_k_norm.weight"), "k")
        self.norm, self.ffn_norm = named("attn_norm.weight"), named("ffn_norm.weight")
        weights = [paired(named(f"attn_{part}.weight"), part) for part in "qkv"]
        biases = [paired(maybe(f"attn_{part}.bias"), part) for part in "qkv"]
        bias = torch.cat([each for each in biases if each is not None]) if biases[0] is not None else None
        self.qkv: _Float | _Int8 = _Float(torch.cat([each for each in weights if each is not None]), bias)
        self.output: _Float | _Int8 = _Float(named("attn_output.weight"), maybe("attn_output.bias"))
        self.gate_up: _Float | _Int8 = _Float(torch.cat([named("ffn_gate.weight"), named("ffn_up.weight")]))
        self.down: _Float | _Int8 = _Float(named("ffn_down.weight"))

    def __call__(self, states: Tensor, places: Places, past: Past | None) -> tuple[Tensor, Past]:
        """The block's output for states (n, n_embd), and keys and values of its tokens."""
        shape, n = self.shape, len(states)
        normed = functional.rms_norm(states, states.shape[-1:], self.norm, shape.epsilon)
        heads = self.qkv(normed).view(n, -1, shape.n_rot).transpose(0, 1)  # (n_heads + 2 n_groups, n, n_rot)
        queries, keys, values = torch.split(heads, [shape.n_heads, shape.n_groups, shape.n_groups])
        queries, keys = (
            self._rotated(each, norm, places) for each, norm in zip((queries, keys), self.head_norms, strict=True)
        )
        new = Past(keys, values)
        if past is not None:
            keys, values = torch.cat([past.keys, keys], 1), torch.cat([past.values, values], 1)
        states = states + self.output(self._attended(queries, keys, values, places))
        normed = functional.rms_norm(states, states.shape[-1:], self.ffn_norm, shape.epsilon)
        gate, up = self.gate_up(normed).chunk(2, -1)
        return states.add_(self.down(functional.silu(gate).mul_(up))), new

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor, places: Places) -> Tensor:
        """What queries (n_heads, n, n_rot) find among keys and values (n_groups, n_past + n, n_rot), (n, n_heads *
        n_rot)."""
        shape, n = self.shape, queries.shape[1]
        n_blocks, n_columns = places.columns.shape

        def looked_at(each: Tensor) -> Tensor:
            found = each.index_select(1, places.columns.flatten())
            return found.view(shape.n_groups, n_blocks, n_columns, shape.n_rot).transpose(0, 1)

        whole = functional.pad(queries, (0, 0, 0, n_blocks * BLOCK - n))
        blocks = whole.view(shape.n_groups, shape.share, n_blocks, BLOCK, shape.n_rot).permute(2, 0, 1, 3, 4)
        mixed = functional.scaled_dot_product_attention(
            blocks.reshape(n_blocks, shape.n_groups, -1, shape.n_rot),
            looked_at(keys),
            looked_at(values),
            attn_mask=places.sees,
        )
        mixed = mixed.view(n_blocks, shape.n_heads, BLOCK, shape.n_rot).transpose(1, 2)
        return mixed.reshape(n_blocks * BLOCK, -1)[:n]

    def _rotated(self, heads: Tensor, norm: Tensor | None, places: Places) -> Tensor:
        """Heads (n_heads, n, n_rot) behind their norm, where they have one, at rotary positions (arXiv 2104.09864)."""
        if norm is not None:
            heads = functional.rms_norm(heads, (self.shape.n_rot,), norm, self.shape.epsilon)
        pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * places.turns).flatten(-2)

    def quantise(self) -> None:
        """Into 8 bits, from what the matrices noted of their inputs."""
        qkv, output, gate_up, down = self.qkv, self.output, self.gate_up, self.down
        assert isinstance(qkv, _Float) and isinstance(output, _Float)
        assert isinstance(gate_up, _Float) and isinstance(down, _Float)
        shape = self.shape
        self.norm = self.norm / qkv.balance()
        self.ffn_norm = self.ffn_norm / gate_up.balance()

        def by_group(scale: Tensor) -> Tensor:  # heads of one group read the same values
            grouped = scale.view(shape.n_groups, -1, shape.n_rot).amax(1, keepdim=True)
            return grouped.expand(-1, shape.n_heads // shape.n_groups, -1).reshape(-1)

        values = output.balance(by_group).view(shape.n_groups, -1, shape.n_rot)[:, 0].reshape(-1)
        _divide_rows(qkv, values)
        _divide_rows(gate_up, down.balance())
        self.qkv, self.output, self.gate_up, self.down = map(_Int8, (qkv, output, gate_up, down))


def _divide_rows(matrix: _Float, by: Tensor) -> None:
    """Divide the last outputs of a matrix."""
    matrix.weight[-len(by) :] /= by[:, None]
    if matrix.bias is not None:
        matrix.bias[-len(by) :] /= by


class Int8Model:
    """Embedding and layers 0 to `top` of the GGUF model at `path`.

    Args:
        sample: tokens of a typical prompt or several, by which the ranges of inputs are told.

    Raises:
        ModelError: the model's architecture, or something in it, is not known here.
    """

    def __init__(self, path: Path, top: int, sample: Sequence[int]) -> None:
        file = _File(path)
        self._file, self.shape = file, _Shape.of(file.header)
        turns = torch.arange(0, self.shape.n_rot, 2, dtype=torch.float64) / self.shape.n_rot
        self._frequencies = self.shape.base**-turns
        if file.has("rope_freqs.weight"):
            self._frequencies /= file.rows("rope_freqs.weight").double()
        self._layers: list[_Layer] = []
        with torch.inference_mode():
            states = self._embedded(sample)
            places = self.places(np.arange(len(sample)), np.tril(np.ones((len(sample), len(sample)), np.bool_)))
            for index in range(top + 1):
                layer = _Layer(file, index, self.shape)
                states, _ = layer(states, places, None)
                layer.quantise()
                self._layers.append(layer)

    def places(self, positions: NDArray[np.intp], sees: NDArray[np.bool_]) -> Places:
        """Where tokens stand.

        Args:
            positions: of the tokens, (n,).
            sees: which of the past and of themselves each sees, (n, n_past + n).
        """
        angles = torch.from_numpy(positions).double()[:, None] * self._frequencies
        n_blocks = -(-len(sees) // BLOCK)
        rows = np.zeros((n_blocks * BLOCK, sees.shape[1]), np.bool_)
        rows[: len(sees)] = sees
        rows[len(sees) :, 0] = True  # something must be seen, though nobody asks what these find
        blocks = rows.reshape(n_blocks, BLOCK, -1)
        looked_at = blocks.any(1)  # (n_blocks, n_past + n)
        n_columns = looked_at.sum(1).max()
        columns = np.argsort(~looked_at, axis=1, kind="stable")[:, :n_columns]
        seen = torch.from_numpy(np.take_along_axis(blocks, columns[:, None], axis=2))
        looks = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        return Places(
            torch.polar(torch.ones_like(angles), angles).to(torch.complex64),
            torch.from_numpy(columns),
            looks.repeat(1, self.shape.share, 1)[:, None],
        )

    def _embedded(self, tokens: Sequence[int]) -> Tensor:
        unique, places = np.unique(np.asarray(tokens, np.intp), return_inverse=True)
        return self._file.rows("token_embd.weight", unique)[torch.from_numpy(places.reshape(-1))]

    @torch.inference_mode()
    def read(
        self, tokens: Sequence[int], places: Places, past: Sequence[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """The last layer's output, (n, n_embd), and every layer's keys and values."""
        states, made = self._embedded(tokens), []
        for index, layer in enumerate(self._layers):
            states, new = layer(states, places, past[index] if past else None)
            made.append(new)
        return states, made
