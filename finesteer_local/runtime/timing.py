"""How long llama.cpp takes for one prompt and its answer, through `Llama.generate` and without it.

Every answer begins with an empty KV cache and is greedy, so that all ways do the same work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from llama_cpp import Llama, llama_cpp

from finesteer_local.errors import ContextLengthError, ModelError
from finesteer_local.runtime.amx import PlainLlama
from finesteer_local.runtime.control import Vectors, set_control_vector


def open_plain(path: str | Path, *, n_ctx: int, n_threads: int, n_gpu_layers: int = 0) -> Llama:
    """llama-cpp-python's own `Llama` (without AMX), opened as `open_model` opens a `SteeredLlama`.

    Raises:
        ModelError: llama.cpp cannot load it.
    """
    try:
        return PlainLlama(
            str(path),
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_gpu_layers=n_gpu_layers,
            verbose=False,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"llama.cpp cannot load {path}: {error}; fetch the file again") from error


def generated(llama: Llama, prompt: Sequence[int]) -> Iterator[int]:
    """Greedy tokens from `Llama.generate`, steered as `llama` is; the first step reads all of `prompt`.

    Raises:
        ContextLengthError: the prompt does not fit the context.
    """
    _check_room(llama, prompt)
    llama.reset()  # type: ignore[no-untyped-call]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    yield from llama.generate(prompt, temp=0.0)


def decoded(llama: Llama, prompt: Sequence[int]) -> Iterator[int]:
    """`llama_decode` alone, as llama-bench calls it: the prompt, then the same token again and again.

    Raises:
        ContextLengthError: the prompt does not fit the context.
        ModelError: llama.cpp cannot decode it.
    """
    _check_room(llama, prompt)
    llama.reset()  # type: ignore[no-untyped-call]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    for begin in range(0, len(prompt), llama.n_batch):
        chunk = prompt[begin : begin + llama.n_batch]
        _decode(llama, (llama_cpp.llama_token * len(chunk))(*chunk))
    again = (llama_cpp.llama_token * 1)(prompt[-1])
    while True:
        yield prompt[-1]
        _decode(llama, again)


def first_seconds(stream: Iterator[int]) -> float:
    """Seconds to the first token of an answer."""
    started = time.perf_counter()
    next(stream)
    return time.perf_counter() - started


def token_seconds(streams: Sequence[Iterator[int]], n: int) -> list[float]:
    """Seconds a token after the first, for each of several answers that grow by turns.

    By turns, because other work that slows the machine for a tenth of a second then slows all answers alike.
    """
    for stream in streams:
        next(stream)
    total = [0.0] * len(streams)
    turns = list(range(len(streams)))
    for _ in range(n):
        for i in turns:
            started = time.perf_counter()
            next(streams[i])
            total[i] += time.perf_counter() - started
        turns.reverse()
    return [seconds / n for seconds in total]


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


def _check_room(llama: Llama, prompt: Sequence[int]) -> None:
    if not 0 < len(prompt) < llama.n_ctx():
        raise ContextLengthError(len(prompt), llama.n_ctx(), "raise --ctx")
