"""Hidden states of many prompts: the residual stream at chosen layers, read in passes that stop after the last of them.

The prompts are read in a context of their own, many to a batch (packing.py): what they begin with in common is decoded
once. Stopping the pass (the eval callback returns false) leaves no logits and no keys or values above the last layer
that is read; those below are whole, which is all that the layers read look back at.

llama.cpp rounds by the shape of a batch, and quantised kernels round activations to 8 bits after that, so a prompt's
states differ a little by what it was read with: on SmolLM2 Q4_1 at mid depth by 1.6 % of the state's norm (median; 4 %
at most). The same requests are always batched alike and give the same bits.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp

from finesteer_local.errors import ContextLengthError, PromptError, SteeringError
from finesteer_local.runtime.compat import model_of, new_context, set_fields
from finesteer_local.runtime.expand import expanded
from finesteer_local.runtime.packing import Batch, Plan, StatesRequest
from finesteer_local.runtime.quiet import unlogged
from finesteer_local.runtime.tap import Array, Rows, Tap
from finesteer_local.runtime.tapped import TappedLlama

MICRO_BATCH = 512
EXPAND_FROM = 30_000  # prompt tokens for which a faster copy of the model pays
_MICRO_BATCH_TOP = 128  # the top layer computes only rows that get logits, and those are large
SEQUENCES = 48
_SAME = 0.15  # relative difference of a state read in a batch and alone; rounding stays well below (see above)
_CELLS = 256  # llama.cpp rounds caches up to this


class _NotShared(Exception):
    """Prompts cannot be read together in this model's memory."""


class Reader(ABC):
    """Reads hidden states of one model at `layers`, which are ascending."""

    layers: list[int]

    @abstractmethod
    def harvest(
        self, requests: Sequence[StatesRequest], known: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, Array]]:
        """Read every request, in whatever order is best.

        Args:
            requests: what to read; all of them decide how they are batched.
            known: whether the states of a request are there already. A batch that holds nothing else is left out, so
                that reading the rest gives the very numbers that reading everything would.

        Yields:
            Index of the request, and the hidden states of its tokens from `first` on, float32,
            shape (n_layers, n, n_embd).
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what reading took; the next read takes it again."""

    def prompt_state(self, prompt: Sequence[int]) -> Array:
        """Hidden states of the prompt's last token, shape (n_layers, n_embd), float32."""
        return self.turn_states(prompt, len(prompt) - 1)[:, -1]

    def turn_states(self, prompt: Sequence[int], turn: int) -> Array:
        """Hidden states of the prompt's tokens from `turn` on, shape (n_layers, n_prompt - turn, n_embd), float32."""
        return next(self.harvest([StatesRequest(prompt, turn)]))[1]

    def answer_states(self, prompt: Sequence[int], answer: Sequence[int]) -> Array:
        """Hidden states of the answer's tokens after `prompt`, shape (n_layers, n_answer, n_embd), float32."""
        return self.turn_states([*prompt, *answer], len(prompt))


class Harvester(Reader):
    """Reads hidden states of the model of `llama` at `layers`. The model's own requests are not disturbed.

    A context of its own shares the model's weights; `close` frees it, or closing the model does.

    Args:
        expand_from: prompt tokens of one harvest from which a faster copy of the layers pays (expand.py).

    Raises:
        PromptError: nothing to read, or more than the context of `llama` holds.
        SteeringError: a hidden state is not finite, or llama.cpp does not show a layer.
    """

    def __init__(self, llama: TappedLlama, layers: Sequence[int], *, expand_from: float = EXPAND_FROM) -> None:
        self.llama, self.layers = llama, sorted(set(layers))
        self.top = self.layers[-1] == llama.n_layer - 1
        self.tap = Tap(llama.n_embd, native=llama.tap.native)
        model = llama.model
        # Recurrent memory holds one past a sequence: nothing can be shared.
        self._shared = not (llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))
        self._checked = False  # whether sharing is known to work
        self._model = model_of(llama)  # or its expanded copy
        self._expand_from, self._expandable = expand_from, True
        self._context: Any = None
        self._parts: dict[int, list[Array]] = {}

    def harvest(
        self, requests: Sequence[StatesRequest], known: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, Array]]:
        """Read every request, in the order that shares most; see `Reader`."""
        for request in requests:
            if not 0 <= request.first < len(request.tokens):
                raise PromptError("an empty prompt or answer has no hidden states")
            if len(request.tokens) > self.llama.n_ctx():
                raise ContextLengthError(len(request.tokens), self.llama.n_ctx())
        if self._expandable and sum(len(request.tokens) for request in requests) >= self._expand_from:
            self._expand(requests[0])
        plan = self._plan(requests)
        context = self._context_for(plan)
        started = False
        for batch in plan.batches():
            if all(known(read.request) for read in batch.reads):
                continue
            if not (started and self._shared):
                self._start(context, plan)
                started = True
            try:
                states = self._decode(context, batch)  # (n_layers, n_batch, n_embd)
                if len(batch.reads) > 1 and not self._checked:
                    read = batch.reads[-1]
                    self._check(context, requests[read.request], states[:, read.rows])
                    started = False
            except _NotShared:
                self._shared = False
                self._forget_context()
                yield from self.harvest(requests, known)
                return
            llama_cpp.llama_memory_seq_rm(context.memory, -1, len(plan.root), -1)
            for index, rows in batch.reads:
                yield index, states[:, rows]

    @property
    def expands(self) -> bool:
        """Whether prompts are read from the faster copy."""
        return self._model is not model_of(self.llama)

    def close(self) -> None:
        """Free the context; the next read makes another."""
        self._forget_context()
        if self.expands:
            self._model.close()
            self._model, self._expandable = model_of(self.llama), True

    def _forget_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None

    def _expand(self, request: StatesRequest) -> None:
        """Read from a faster copy of the layers, where there is one and it gives the same states."""
        self._expandable = False
        copy = None if self.top else expanded(self.llama)
        if copy is None:
            return
        plan = Plan([request], n_tokens=MICRO_BATCH, n_sequences=1)
        states = []
        for model in (model_of(self.llama), copy):
            self._forget_context()
            self._model = model
            states.append(self._decode(self._context_for(plan), next(plan.batches())))
        if not differ(*states) < _SAME:
            self._forget_context()
            self._model = model_of(self.llama)
            copy.close()

    # --- the context

    def _plan(self, requests: Sequence[StatesRequest]) -> Plan:
        n_tokens = _MICRO_BATCH_TOP if self.top else MICRO_BATCH
        return Plan(requests, n_tokens=n_tokens, n_sequences=SEQUENCES, shared=self._shared)

    def _context_for(self, plan: Plan) -> Any:
        n_cells = -(-plan.n_cells // _CELLS) * _CELLS
        if self._context is not None and self._context.n_ctx() < n_cells:
            self._forget_context()
        if self._context is None:
            n_sequences = SEQUENCES if self._shared else 1
            params = set_fields(
                llama_cpp.llama_context_params.from_buffer_copy(self.llama.context_params),
                n_ctx=n_cells,
                n_batch=plan.n_tokens,
                n_ubatch=plan.n_tokens,
                n_seq_max=n_sequences,
                n_outputs_max=plan.n_tokens if self.top else n_sequences,  # each is a row of logits
                kv_unified=True,  # a cell may belong to many sequences
                swa_full=True,  # a sliding window's cache would give cells of the shared beginning away
                # Its kernels skip what a row may not look at, which in a batch of many prompts is most of the cache.
                flash_attn_type=llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
                embeddings=False,
                cb_eval=self.tap.callback,
                cb_eval_user_data=self.tap.user_data,
            )
            with unlogged():  # llama.cpp warns of a full-size window cache, which is what is wanted here
                self._context = new_context(self._model, params, verbose=False)
            self.llama.share_adapter(self._context.ctx)
        return self._context

    def _start(self, context: Any, plan: Plan) -> None:
        """Empty the cache and decode what all prompts begin with, for every sequence."""
        llama_cpp.llama_memory_clear(context.memory, False)
        n = len(plan.root)
        if n:
            everyone = list(range(SEQUENCES))
            self._decode(context, Batch(plan.root.tolist(), list(range(n)), [everyone] * n))

    def _check(self, context: Any, request: StatesRequest, states: Array) -> None:
        """Hold a request that was read in a batch against reading it alone: an odd memory may not share its cells."""
        llama_cpp.llama_memory_clear(context.memory, False)
        alone = next(Plan([request], n_tokens=MICRO_BATCH, n_sequences=1).batches())
        wanted = self._decode(context, alone)[:, alone.reads[0].rows]
        if not differ(states, wanted) < _SAME:
            raise _NotShared
        self._checked = True

    def _decode(self, context: Any, batch: Batch) -> Array:
        """Hidden states of the batch's tokens, shape (n_layers, n_batch, n_embd); the cache then holds them."""
        self._parts = {layer: [] for layer in self.layers}
        self.tap.arm(dict.fromkeys(self.layers, self._on_layer))
        n_micro = int(llama_cpp.llama_n_ubatch(context.ctx))
        try:
            for start in range(0, len(batch.tokens), n_micro):
                chunk = slice(start, start + n_micro)
                status = _decode(
                    context, batch.tokens[chunk], batch.positions[chunk], batch.sequences[chunk], outputs=self.top
                )
                self.tap.check()
                if status and len(batch.reads) > 1 and self._shared:
                    raise _NotShared
                if status:
                    raise SteeringError(f"llama.cpp cannot read the prompts (llama_decode gave {status})")
        finally:
            self.tap.disarm()
        parts = [self._parts[layer] for layer in self.layers]
        if not all(sum(map(len, rows)) == len(batch.tokens) for rows in parts):
            raise SteeringError("llama.cpp does not show the outputs of all layers; this model file cannot be steered")
        states = np.stack([np.concatenate(rows) for rows in parts])
        if not np.isfinite(states).all():
            raise SteeringError("the model's hidden state is not finite; this model file cannot be steered")
        return states

    def _on_layer(self, layer: int, rows: Rows) -> bool:
        self._parts[layer].append(rows.read(0, rows.n_rows))
        return layer != self.layers[-1]


def differ(states: Array, wanted: Array) -> float:
    """Relative difference of hidden states, the median."""
    difference = np.linalg.norm(states - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    return float(np.median(difference))


def _decode(
    context: Any,
    tokens: Sequence[int],
    positions: Sequence[int],
    sequences: Sequence[Sequence[int]],
    *,
    outputs: bool,
) -> int:
    """`llama_decode` of tokens that may belong to several sequences each; gives its status."""
    ids, places = np.array(tokens, np.int32), np.array(positions, np.int32)
    counts = np.array([len(each) for each in sequences], np.int32)
    members = np.array([sequence for each in sequences for sequence in each], np.int32)
    starts = members.ctypes.data + 4 * (np.cumsum(counts) - counts).astype(np.uintp)  # of each token's sequences
    wanted = np.full(len(tokens), outputs, np.int8)
    batch = set_fields(
        llama_cpp.llama_batch(),
        n_tokens=len(tokens),
        token=ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        pos=places.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        n_seq_id=counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        seq_id=starts.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
    )
    return int(llama_cpp.llama_decode(context.ctx, batch))
