"""A llama_context with room for many sequences, each with keys and values of its own.

The KV cache is not unified: every sequence has a stream, in which a token's cell is its position. Its attention then
runs over the same cells in the same order whatever the other sequences hold, so that a row of a batch is rounded as
it is alone (docs/batch.md has the measurements), and non-finite keys of one sequence cannot reach another: masked
cells count 0, but 0 times NaN is NaN.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from finesteer_local.errors import ModelError
from finesteer_local.runtime.compat import model_of, new_batch, new_context, set_fields
from finesteer_local.runtime.control import ControlVector
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.runtime.tap import Tap


@dataclass(frozen=True)
class Token:
    """One row of a micro-batch."""

    token: int
    position: int
    sequence: int
    output: bool  # whether its logits are wanted


class Streams:
    """`n_sequences` streams of `n_ctx` tokens over the loaded model of `llama`, and a tap of their own.

    Raises:
        ModelError: llama.cpp cannot make such a context.
    """

    def __init__(self, llama: SteeredLlama, *, n_sequences: int, n_ctx: int, n_ubatch: int, native_tap: bool) -> None:
        self.n_layer, self.n_embd, self.n_vocab = llama.n_layer, llama.n_embd(), llama.n_vocab()
        self.n_ctx, self.n_ubatch = n_ctx, n_ubatch
        self._window = llama_cpp.llama_model_n_swa(llama.model)
        self.tap = Tap(lambda: self.n_embd, native=native_tap)
        params = set_fields(
            llama_cpp.llama_context_params.from_buffer_copy(llama.context_params),
            n_ctx=n_sequences * _padded(n_ctx),
            n_seq_max=n_sequences,
            kv_unified=False,
            n_batch=n_ubatch,
            n_ubatch=n_ubatch,
            cb_eval=self.tap.callback,
            cb_eval_user_data=self.tap.user_data,
        )
        try:
            self._context = new_context(model_of(llama), params, verbose=llama.verbose)
        except ValueError as error:
            raise ModelError(
                f"llama.cpp cannot make a context of {n_sequences} times {n_ctx:,} tokens: {error}; ask for fewer"
            ) from error
        self.ctx = self._context.ctx
        self.control = ControlVector(self.ctx, n_layer=self.n_layer, n_embd=self.n_embd)  # of all sequences
        self._memory = llama_cpp.llama_get_memory(self.ctx)
        self._batch = new_batch(n_ubatch, verbose=llama.verbose)
        llama.share_adapter(self.ctx)

    def close(self) -> None:
        self._batch.close()
        self._context.close()

    def decode(self, rows: Sequence[Token]) -> None:
        """Decode one micro-batch; raises what the tap raised.

        The rows are tokens of one sequence, or one token each of sequences whose numbers follow each other: only then
        llama.cpp (`llama_batch_allocr::split_equal`) computes them in one graph and in this order, and the rows that
        the tap sees are these.

        Raises:
            ModelError: llama.cpp cannot decode them; its cache is as before.
        """
        batch = self._batch.batch
        set_fields(batch, n_tokens=len(rows))
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.position, row.output
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.sequence
        self.tap.stand_aside(self.ctx)
        status = llama_cpp.llama_decode(self.ctx, batch)
        self.tap.check()
        if status:
            raise ModelError(f"llama.cpp could not decode (code {status}); its memory may be full")

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits of a row of the last micro-batch, (n_vocab,); valid until the next."""
        address = ctypes.cast(llama_cpp.llama_get_logits_ith(self.ctx, row), ctypes.c_void_p).value
        assert address is not None, "the row has no logits"
        values: Any = (ctypes.c_float * self.n_vocab).from_address(address)
        found: NDArray[np.float32] = np.frombuffer(values, np.float32)
        return found

    def keep(self, sequence: int, n_tokens: int) -> int:
        """Drop a sequence's tokens from `n_tokens` on. Returns how many are left: `n_tokens`, or 0.

        As `TappedLlama.keep`: recurrent memory cannot be cut, and a sliding window may have moved on.
        """
        oldest = llama_cpp.llama_memory_seq_pos_min(self._memory, sequence)
        lost = oldest > max(n_tokens - self._window, 0)
        if n_tokens and not lost and llama_cpp.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1):
            return n_tokens
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    @property
    def can_move(self) -> bool:
        """Whether a sequence can go to another stream: not where memory is one state for all of it."""
        model = llama_cpp.llama_get_model(self.ctx)
        return not (llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))

    def move(self, sequence: int, to: int) -> None:
        """Make `to` hold what `sequence` holds, cell by cell, in place of its own; `sequence` keeps it too.

        llama.cpp copies the stream before it decodes the next time: until then nothing may be loaded into either.
        """
        llama_cpp.llama_memory_seq_cp(self._memory, sequence, to, -1, -1)

    def forget(self) -> None:
        """Empty all sequences and overwrite what they held."""
        llama_cpp.llama_memory_clear(self._memory, True)

    @property
    def restores_exactly(self) -> bool:
        """Whether `load` gives back the same bits: with a sliding window the cells move, and sums round otherwise."""
        return bool(self._window == 0)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of a sequence's keys and values (`llama_state_seq_get_data`)."""
        data = np.empty(llama_cpp.llama_state_seq_get_size(self.ctx, sequence), np.uint8)
        size = llama_cpp.llama_state_seq_get_data(self.ctx, _bytes(data), data.size, sequence)
        return data[:size]

    def load(self, sequence: int, data: NDArray[np.uint8]) -> bool:
        """Make `sequence` hold what was saved; False leaves it empty."""
        self.keep(sequence, 0)
        if llama_cpp.llama_state_seq_set_data(self.ctx, _bytes(data), data.size, sequence):
            return True
        self.keep(sequence, 0)
        return False


class OwnStream(Streams):
    """The one sequence of `llama`'s own context, with its tap and its control vector; nothing else is allocated.

    Meanwhile `llama` must not compute; what its cache held is forgotten, now and when this is closed.
    """

    def __init__(self, llama: SteeredLlama) -> None:
        self.n_layer, self.n_embd, self.n_vocab = llama.n_layer, llama.n_embd(), llama.n_vocab()
        self.n_ctx, self.n_ubatch = llama.n_ctx(), min(llama.context_params.n_ubatch, llama.n_batch)
        self._window = llama_cpp.llama_model_n_swa(llama.model)
        self.tap, self.control, self.ctx, self._llama = llama.tap, llama.control, llama.ctx, llama
        self._memory = llama_cpp.llama_get_memory(self.ctx)
        self._batch = new_batch(self.n_ubatch, verbose=llama.verbose)
        self._empty()

    def keep(self, sequence: int, n_tokens: int) -> int:
        """As `Streams.keep`; 0 too where `llama` was asked meanwhile whether it can be steered, and forgot."""
        newest = llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)
        return super().keep(sequence, n_tokens if newest + 1 >= n_tokens else 0)

    def close(self) -> None:
        self._batch.close()
        self._empty()

    def _empty(self) -> None:
        self.control.set({})
        self._llama.forget()


def bytes_per_token(llama: SteeredLlama) -> int:
    """About what a token's keys and values take in the KV cache, float16."""
    model = llama.model
    width = llama.n_embd() * llama_cpp.llama_model_n_head_kv(model) // max(llama_cpp.llama_model_n_head(model), 1)
    return int(2 * 2 * llama.n_layer * width)


def _padded(n_ctx: int) -> int:
    return -(-n_ctx // 256) * 256  # llama.cpp rounds a stream's length up to this


def _bytes(data: NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
