"""How long llama.cpp takes: one prompt and its answer, through `Llama.generate` and without it.

Each measurement begins with an empty KV cache and decodes greedily, so that all ways do the same work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llama_cpp import Llama, llama_cpp

from finesteer_local.errors import ModelError, PromptError
from finesteer_local.runtime.control import Vectors, set_control_vector


@dataclass(frozen=True)
class Timing:
    """Seconds from the prompt to the first token, and for each token after it."""

    first: float
    each: float


def open_plain(path: str | Path, *, n_ctx: int, n_threads: int, n_gpu_layers: int = 0) -> Llama:
    """llama-cpp-python's own `Llama`, opened as `open_model` opens a `SteeredLlama`.

    Raises:
        ModelError: llama.cpp cannot load it.
    """
    try:
        return Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_gpu_layers=n_gpu_layers,
            verbose=False,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"llama.cpp cannot load {path}: {error}; fetch the file again") from error


def through_generate(llama: Llama, prompt: Sequence[int], n_answer: int) -> Timing:
    """An answer of 1 + `n_answer` tokens from `Llama.generate`, steered as `llama` is."""
    _check_room(llama, prompt, n_answer)
    llama.reset()  # type: ignore[no-untyped-call]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    started = time.perf_counter()
    stream = llama.generate(prompt, temp=0.0)
    next(stream)
    first = time.perf_counter()
    for _ in range(n_answer):
        next(stream)
    return _timing(started, first, n_answer)


def bare(llama: Llama, prompt: Sequence[int], n_answer: int) -> Timing:
    """`llama_decode` alone, as llama-bench calls it: one batch for the prompt, then tokens that nobody chooses."""
    _check_room(llama, prompt, n_answer)
    llama.reset()  # type: ignore[no-untyped-call]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    tokens = (llama_cpp.llama_token * len(prompt))(*prompt)
    again = (llama_cpp.llama_token * 1)(prompt[-1])
    started = time.perf_counter()
    for begin in range(0, len(prompt), llama.n_batch):
        chunk = (llama_cpp.llama_token * min(llama.n_batch, len(prompt) - begin))(
            *tokens[begin : begin + llama.n_batch]
        )
        _decode(llama, chunk)
    first = time.perf_counter()
    for _ in range(n_answer):
        _decode(llama, again)
    return _timing(started, first, n_answer)


@contextmanager
def controlled(llama: Llama, vectors: Vectors) -> Iterator[None]:
    """Plain llama.cpp under a control vector: every token of prompt and answer is steered, nothing is decided."""
    sizes = {"n_layer": int(llama_cpp.llama_model_n_layer(llama.model)), "n_embd": llama.n_embd()}
    set_control_vector(llama.ctx, vectors, **sizes)
    try:
        yield
    finally:
        set_control_vector(llama.ctx, {}, **sizes)


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes; what it yields is taken from it and dropped."""
    started = time.perf_counter()
    result = work()
    if isinstance(result, Iterator):
        deque(result, maxlen=0)
    return time.perf_counter() - started


def some_vector(llama: Llama) -> dict[int, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """A vector in the middle layer, small: what it says does not matter, what adding it costs does."""
    layer = max(int(llama_cpp.llama_model_n_layer(llama.model)) // 2, 1)
    return {layer: np.full(llama.n_embd(), 1e-3, np.float32)}


def _decode(llama: Llama, tokens: object) -> None:
    batch = llama_cpp.llama_batch_get_one(tokens, len(tokens))  # type: ignore[arg-type]
    if llama_cpp.llama_decode(llama.ctx, batch):
        raise ModelError("llama.cpp could not decode; its memory may be full: give a shorter --ctx")
    llama_cpp.llama_synchronize(llama.ctx)  # on a GPU, decoding returns before it is done


def _check_room(llama: Llama, prompt: Sequence[int], n_answer: int) -> None:
    if not prompt or len(prompt) + n_answer + 1 > llama.n_ctx():
        raise PromptError(
            f"a prompt of {len(prompt):,} tokens and an answer of {n_answer + 1:,} do not fit the context of "
            f"{llama.n_ctx():,}; raise --ctx"
        )


def _timing(started: float, first: float, n_answer: int) -> Timing:
    return Timing(first - started, (time.perf_counter() - first) / n_answer if n_answer else 0.0)
