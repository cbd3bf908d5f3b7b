"""The lower layers of a GGUF model in PyTorch, for reading thousands of prompts on a processor: in 8 bits or bfloat16.

llama.cpp's kernels multiply most quantisations of small models far below what a processor can do: a tenth of it for
Q5_0 and Q4_1 with AVX-512. oneDNN multiplies either of these, and `quicker` tells which of them this machine does
faster:

- 8 bits: every matrix with one scale an output row, every input with one scale a token. An input channel of large
  activations would cost a token's other channels their precision; its range is moved into the weights first
  (SmoothQuant, arXiv 2211.10438), layer by layer, on a sample of the prompts. A weight takes a byte.
- bfloat16: as fast with AMX, AVX512-BF16 or ARM's BF16, with nothing to quantise, in attention too, and closer to what
  llama.cpp computes. A weight takes two bytes; where that would be too much, one byte, with a scale an output row, from
  which each batch has it in bfloat16 for as long as it needs it: a tenth slower.

What runs through the layers, and the norms, stay float32. Only the layers that are asked for are built, one at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finesteer_local.training.memory import give_back
from finesteer_local.training.stored import LEVELS, TINY, product, stored
from finesteer_local.training.tensor_file import Shape, TensorFile

_MOVED = 0.55  # how much of the range of inputs the weights get: alpha of SmoothQuant
BLOCK = 64
"""Tokens that look together; fewer are multiplied less efficiently, more look at too much."""
_COLUMNS = 128  # what a block looks at, the least, and doubled: blocks alike in it look together

Precision = Literal["int8", "bfloat16", "bfloat16 from int8"]
_HEADS: dict[Precision, torch.dtype] = {  # and masks
    "int8": torch.float32,
    "bfloat16": torch.bfloat16,
    "bfloat16 from int8": torch.bfloat16,
}
PRECISIONS = tuple(_HEADS)
LARGEST = 3 << 28
"""Bytes that matrices in bfloat16 may take; more are kept in 8 bits."""
_TRIED = 512  # tokens by which the precisions are timed
_REPEATS = 5


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
        scale = self.greatest.clamp(min=TINY) ** _MOVED / self.weight.abs().amax(0).clamp(min=TINY) ** (1 - _MOVED)
        scale = shared(scale.clamp(min=TINY))
        self.weight = self.weight * scale
        return scale


class _Int8:
    """A matrix (n_out, n_in) in 8 bits, with a bias (n_out,) in float32."""

    def __init__(self, source: _Float) -> None:
        self.scale = source.weight.abs().amax(1).clamp_(min=TINY).div_(LEVELS)
        self.weight = torch.div(source.weight, self.scale[:, None]).round_().to(torch.int8).t().contiguous()
        self.bias = source.bias

    def __call__(self, inputs: Tensor) -> Tensor:
        # Not `aminmax`, which takes eight times as long over a row.
        greatest = torch.maximum(inputs.amax(-1, keepdim=True), inputs.amin(-1, keepdim=True).neg_())
        scale = greatest.clamp_(min=TINY).div_(LEVELS)
        levels = torch.div(inputs, scale).round_().to(torch.int8)
        out = torch.mul(torch._int_mm(levels, self.weight), self.scale).mul_(scale)
        return out if self.bias is None else out.add_(self.bias)


class _Bfloat16:
    """A matrix (n_out, n_in) in bfloat16, and its bias (n_out,)."""

    def __init__(self, source: _Float) -> None:
        self.weight = source.weight.to(torch.bfloat16)
        self.bias = None if source.bias is None else source.bias.to(torch.bfloat16)

    def __call__(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs.to(torch.bfloat16), self.weight, self.bias)


class _Stored:
    """A matrix (n_out, n_in) that is kept in 8 bits and multiplied in bfloat16, in which these are exact."""

    def __init__(self, source: _Float) -> None:
        self.weight, self.scale = stored(source.weight)
        self.bias = None if source.bias is None else source.bias.to(torch.bfloat16)

    def __call__(self, inputs: Tensor) -> Tensor:
        out = product(inputs.to(torch.bfloat16), self.weight, self.scale)
        return out if self.bias is None else out.add_(self.bias)


_Matrix = _Float | _Int8 | _Bfloat16 | _Stored


class Past(NamedTuple):
    """Keys and values of what all prompts begin with, each (n, n_groups, n_rot)."""

    keys: Tensor
    values: Tensor


class Looks(NamedTuple):
    """Blocks that look at about as many columns as each other.

    Attributes:
        blocks: which they are, (n_blocks,), or None where they are all.
        columns: of the past and the batch, what each looks at, (n_blocks, n_columns).
        sees: 0 where a token looks, -inf where not, (n_blocks, 1, BLOCK * share, n_columns): once for each of the heads
            that share keys and values.
    """

    blocks: Tensor | None
    columns: Tensor
    sees: Tensor


class Places(NamedTuple):
    """Where a batch's tokens stand, and what each sees.

    Most sequences are much shorter than a batch, so the tokens look in blocks: each of them only at what one of its own
    tokens sees. One long prompt among short ones would have all blocks look at as much as its own; so blocks are
    grouped by how much that is.

    Attributes:
        turns: e to the i times every angle of rotation, (n, 1, n_rot / 2).
        looks: every block in one of them.
    """

    turns: Tensor
    looks: list[Looks]

    @property
    def n_blocks(self) -> int:
        return -(-len(self.turns) // BLOCK)


class _Layer:
    """One block: attention and a gated feed-forward network, each behind an RMS norm."""

    def __init__(self, file: TensorFile, index: int, shape: Shape) -> None:
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

        def ordered(found: Tensor | None, part: str) -> Tensor | None:
            """Heads of queries by their place in a group: those that share keys are rows of one product, uncopied."""
            found = paired(found, part)
            return _by_place(found, shape) if found is not None and part == "q" else found

        self.shape = shape
        self.dtype = torch.float32  # of heads
        self.head_norms = paired(maybe("attn_q_norm.weight"), "q"), paired(maybe("attn_k_norm.weight"), "k")
        self.norm, self.ffn_norm = named("attn_norm.weight"), named("ffn_norm.weight")
        weights = [ordered(named(f"attn_{part}.weight"), part) for part in "qkv"]
        biases = [ordered(maybe(f"attn_{part}.bias"), part) for part in "qkv"]
        bias = torch.cat([each for each in biases if each is not None]) if biases[0] is not None else None
        self.qkv: _Matrix = _Float(torch.cat([each for each in weights if each is not None]), bias)
        output = _by_place(named("attn_output.weight").t(), shape).t()
        self.output: _Matrix = _Float(output.contiguous(), maybe("attn_output.bias"))
        self.gate_up: _Matrix = _Float(torch.cat([named("ffn_gate.weight"), named("ffn_up.weight")]))
        self.down: _Matrix = _Float(named("ffn_down.weight"))

    def __call__(self, states: Tensor, places: Places, past: Past | None) -> tuple[Tensor, Past]:
        """The block's output for states (n, n_embd), in their place, and keys and values of its tokens."""
        shape, n = self.shape, len(states)
        heads = self.qkv(self._normed(states, self.norm)).view(n, -1, shape.n_rot)
        queries, keys, values = torch.split(heads, [shape.n_heads, shape.n_groups, shape.n_groups], 1)
        queries, keys = (
            self._rotated(each, norm, places) for each, norm in zip((queries, keys), self.head_norms, strict=True)
        )
        new = Past(keys, values)
        if past is not None:
            keys, values = torch.cat([past.keys, keys]), torch.cat([past.values, values])
        states.add_(self.output(self._attended(queries, keys, values, places)))
        gate, up = self.gate_up(self._normed(states, self.ffn_norm)).chunk(2, -1)
        return states.add_(self.down(functional.silu(gate).mul_(up))), new

    def _normed(self, states: Tensor, norm: Tensor) -> Tensor:
        """RMS norm, in half the time that `rms_norm` takes over whole states."""
        squares = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_()
        return torch.mul(states, squares.div_(states.shape[-1]).add_(self.shape.epsilon).rsqrt_()).mul_(norm)

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor, places: Places) -> Tensor:
        """What queries (n, n_heads, n_rot) find among keys and values (n_past + n, n_groups, n_rot), (n, n_heads *
        n_rot)."""
        shape, n, n_blocks = self.shape, len(queries), places.n_blocks
        whole = functional.pad(queries, (0, 0, 0, 0, 0, n_blocks * BLOCK - n))
        blocks = whole.reshape(n_blocks, BLOCK * shape.share, shape.n_groups, shape.n_rot)

        def mixed(looks: Looks) -> Tensor:
            def seen(each: Tensor) -> Tensor:
                return each.index_select(0, looks.columns.flatten()).view(*looks.columns.shape, *each.shape[1:])

            asking = blocks if looks.blocks is None else blocks.index_select(0, looks.blocks)
            query, key, value = (each.transpose(1, 2) for each in (asking, seen(keys), seen(values)))
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=looks.sees).transpose(1, 2)

        if len(places.looks) == 1:
            found = mixed(places.looks[0])
        else:
            found = torch.empty_like(blocks)
            for looks in places.looks:
                found[looks.blocks] = mixed(looks)
        return found.reshape(n_blocks * BLOCK, -1)[:n]

    def _rotated(self, heads: Tensor, norm: Tensor | None, places: Places) -> Tensor:
        """Heads (n, any, n_rot), perhaps in their place, behind their norm, where they have one, at rotary positions
        (arXiv 2104.09864)."""
        heads = heads.float()
        if norm is not None:
            heads = functional.rms_norm(heads, (self.shape.n_rot,), norm, self.shape.epsilon)
        torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2)).mul_(places.turns)
        return heads.to(self.dtype)

    def into(self, precision: Precision) -> None:
        """Into this precision; 8 bits alone ask for inputs that were seen."""
        if precision == "int8":
            self.quantise()
            return
        kind = _Bfloat16 if precision == "bfloat16" else _Stored
        self.dtype = torch.bfloat16
        self.qkv, self.output, self.gate_up, self.down = (kind(each) for each in self._floats())

    def _floats(self) -> tuple[_Float, _Float, _Float, _Float]:
        qkv, output, gate_up, down = self.qkv, self.output, self.gate_up, self.down
        assert isinstance(qkv, _Float) and isinstance(output, _Float)
        assert isinstance(gate_up, _Float) and isinstance(down, _Float)
        return qkv, output, gate_up, down

    def quantise(self) -> None:
        """Into 8 bits, from what the matrices noted of their inputs."""
        qkv, output, gate_up, down = self._floats()
        shape = self.shape
        self.norm = self.norm / qkv.balance()
        self.ffn_norm = self.ffn_norm / gate_up.balance()

        def by_group(scale: Tensor) -> Tensor:  # heads of one group read the same values
            return scale.view(shape.share, -1).amax(0).repeat(shape.share)

        _divide_rows(qkv, output.balance(by_group).view(shape.share, -1)[0])
        _divide_rows(gate_up, down.balance())
        self.qkv, self.output, self.gate_up, self.down = map(_Int8, (qkv, output, gate_up, down))


def _by_place(rows: Tensor, shape: Shape) -> Tensor:
    """Rows of all heads, those of a group together, as (share, n_groups, n_rot) instead."""
    grouped = rows.reshape(shape.n_groups, shape.share, shape.n_rot, *rows.shape[1:])
    return grouped.transpose(0, 1).reshape(rows.shape)


def _divide_rows(matrix: _Float, by: Tensor) -> None:
    """Divide the last outputs of a matrix."""
    matrix.weight[-len(by) :] /= by[:, None]
    if matrix.bias is not None:
        matrix.bias[-len(by) :] /= by


class LowerLayers:
    """Embedding and layers 0 to `top` of the GGUF model at `path`.

    Args:
        sample: tokens of a typical prompt or several, by which the ranges of inputs are told; only 8 bits ask for it.

    Raises:
        ModelError: the model's architecture, or something in it, is not known here.
    """

    def __init__(self, path: Path, top: int, precision: Precision, sample: Sequence[int]) -> None:
        file = TensorFile(path)
        self._file, self.shape = file, Shape.of(file.header)
        self._frequencies = _frequencies(file, self.shape)
        self._dtype = _HEADS[precision]
        self._layers: list[_Layer] = []
        with torch.inference_mode():
            self._build(top, precision, sample)
        file.forget()
        give_back()

    def _build(self, top: int, precision: Precision, sample: Sequence[int]) -> None:
        """One layer after the other: no two are in float32 at a time."""
        if precision == "int8":
            states = self._embedded(sample)
            places = _places(self.shape, self._frequencies, np.arange(len(sample)), causal(len(sample)), torch.float32)
        for index in range(top + 1):
            layer = _Layer(self._file, index, self.shape)
            if precision == "int8":
                states, _ = layer(states, places, None)
            layer.into(precision)
            self._layers.append(layer)

    def places(self, positions: NDArray[np.intp], sees: NDArray[np.bool_]) -> Places:
        """Where tokens stand.

        Args:
            positions: of the tokens, (n,).
            sees: which of the past and of themselves each sees, (n, n_past + n).
        """
        return _places(self.shape, self._frequencies, positions, sees, self._dtype)

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


def causal(n: int) -> NDArray[np.bool_]:
    """What each of n tokens of one prompt sees, (n, n): itself and those before it."""
    return np.tril(np.ones((n, n), np.bool_))


def _frequencies(file: TensorFile, shape: Shape) -> Tensor:
    """By how much a position turns each pair of a head, (n_rot / 2,)."""
    turns = torch.arange(0, shape.n_rot, 2, dtype=torch.float64) / shape.n_rot
    frequencies = shape.base**-turns
    return frequencies / file.rows("rope_freqs.weight").double() if file.has("rope_freqs.weight") else frequencies


def _places(
    shape: Shape, frequencies: Tensor, positions: NDArray[np.intp], sees: NDArray[np.bool_], dtype: torch.dtype
) -> Places:
    """See `LowerLayers.places`; the masks are of `dtype`, as the heads are."""
    angles = torch.from_numpy(positions).double()[:, None, None] * frequencies
    n_blocks = -(-len(sees) // BLOCK)
    rows = np.zeros((n_blocks * BLOCK, sees.shape[1]), np.bool_)
    rows[: len(sees)] = sees
    rows[len(sees) :, 0] = True  # something must be seen, though nobody asks what these find
    blocks = rows.reshape(n_blocks, BLOCK, -1)
    looked_at = blocks.any(1)  # (n_blocks, n_past + n)
    n_looked_at = looked_at.sum(1)
    order = np.argsort(~looked_at, axis=1, kind="stable")
    size = np.ceil(np.log2(np.maximum(n_looked_at / _COLUMNS, 1)))
    looks = []
    for each in np.unique(size):
        alike = np.flatnonzero(size == each)
        columns = order[alike, : n_looked_at[alike].max()]
        seen = torch.from_numpy(np.take_along_axis(blocks[alike], columns[:, None], axis=2))
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
        looks.append(
            Looks(
                torch.from_numpy(alike) if len(alike) < n_blocks else None,
                torch.from_numpy(columns),
                mask.repeat_interleave(shape.share, 1)[:, None],
            )
        )
    return Places(torch.polar(torch.ones_like(angles), angles).to(torch.complex64), looks)


@torch.inference_mode()
def quicker(path: Path, top: int) -> Precision:
    """The precision in which this machine computes layers 0 to `top` of the GGUF model at `path` faster.

    One layer is timed. What would take more than `LARGEST` in bfloat16 is kept in 8 bits either way. Where the
    processor has no instructions for bfloat16, it is not tried.

    Raises:
        ModelError: the model's architecture, or something in it, is not known here.
    """
    file = TensorFile(path)
    shape = Shape.of(file.header)
    if not _has_bfloat16():
        return "int8"
    tried: tuple[Precision, Precision] = "int8", "bfloat16"
    if 2 * file.n_weights(top) > LARGEST:
        tried = "int8", "bfloat16 from int8"
    layers = {precision: _Layer(file, 0, shape) for precision in tried}
    positions, sees, frequencies = np.arange(_TRIED), causal(_TRIED), _frequencies(file, shape)
    places = {precision: _places(shape, frequencies, positions, sees, dtype) for precision, dtype in _HEADS.items()}
    states = torch.randn(_TRIED, shape.n_embd, generator=torch.Generator().manual_seed(0))
    layers["int8"](states.clone(), places["int8"], None)
    for precision in tried:
        layers[precision].into(precision)
    seconds = dict.fromkeys(tried, math.inf)
    for _ in range(_REPEATS):
        for precision in tried:
            inputs, started = states.clone(), time.perf_counter()
            layers[precision](inputs, places[precision], None)
            seconds[precision] = min(seconds[precision], time.perf_counter() - started)
    return min(tried, key=seconds.__getitem__)


def _has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 here; PyTorch's own loops are far too slow to be tried."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
