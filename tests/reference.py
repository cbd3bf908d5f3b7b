"""What plain llama-cpp-python gives when llama.cpp's own control vector is set before the tokens are read."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama, llama_cpp

from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.amx import PlainLlama
from finesteer_local.runtime.tap import Rows
from finesteer_local.runtime.tapped import TappedLlama

Vectors = Mapping[int, np.ndarray]
SETTINGS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}


def plain_llama(path: Path, **settings: Any) -> Llama:
    return PlainLlama(str(path), **{**SETTINGS, **settings})


def steered_llama(path: Path, **settings: Any) -> SteeredLlama:
    return SteeredLlama(str(path), **{**SETTINGS, **settings})


def tapped(path: Path, **settings: Any) -> TappedLlama:
    return TappedLlama(str(path), **{**SETTINGS, **settings})


def layers_shown(llama: TappedLlama) -> list[int]:
    """The layers that llama.cpp shows the tap from now on, each time that it does."""
    seen: list[int] = []
    handle = llama.tap._on_layer

    def on_layer(tensor: int, layer: int) -> bool:
        seen.append(layer)
        return handle(tensor, layer)

    llama.tap._on_layer = on_layer  # type: ignore[method-assign]
    llama.tap._filter.on_layer = type(llama.tap._filter.on_layer)(on_layer)
    return seen


def whole_pass(path: Path, tokens: Sequence[int], layers: Sequence[int], **settings: Any) -> np.ndarray:
    """The hidden states of a full pass from scratch, (n_layers, n_tokens, n_embd)."""
    llama = tapped(path, logits_all=True, **settings)
    seen: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}

    def look(layer: int, rows: Rows) -> bool:
        seen[layer].append(rows.read(0, rows.n_rows))
        return True

    llama.tap.arm(dict.fromkeys(layers, look))
    llama.eval(tokens)
    return np.stack([np.concatenate(seen[layer]) for layer in layers])


def logits(llama: Llama) -> np.ndarray:
    """The logits of the token read last."""
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama.ctx, -1), shape=(llama.n_vocab(),)).copy()


def control(llama: Llama, vectors: Vectors) -> None:
    n_embd, n_layer = llama.n_embd(), llama_cpp.llama_model_n_layer(llama.model)
    if not vectors:
        assert llama_cpp.llama_set_adapter_cvec(llama.ctx, None, 0, n_embd, 0, 0) == 0
        return
    data = np.zeros((n_layer - 1, n_embd), np.float32)
    for layer, vector in vectors.items():
        data[layer - 1] = vector
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(llama.ctx, pointer, data.size, n_embd, 1, n_layer - 1) == 0


def read(llama: Llama, tokens: Sequence[int], plan: Iterable[tuple[int, Vectors]] = ()) -> np.ndarray:
    """Read `tokens` from scratch, from `plan`'s starts on with its vectors; the logits of the last."""
    steps: list[tuple[int, Vectors]] = [*plan]
    if not steps or steps[0][0] > 0:
        steps = [(0, {}), *steps]
    llama.reset()
    for (start, vectors), stop in zip(steps, [*(s for s, _ in steps[1:]), len(tokens)], strict=True):
        control(llama, vectors)
        llama.eval(tokens[start:stop])
    return logits(llama)


def greedy(llama: Llama, n: int) -> list[int]:
    """The next `n` tokens, under whatever vectors are set."""
    tokens = []
    for _ in range(n):
        tokens.append(int(logits(llama).argmax()))
        llama.eval([tokens[-1]])
    return tokens


def answer(llama: Llama, prompt: Sequence[int], n: int = 8) -> list[int]:
    """The first `n` tokens that `generate` gives."""
    stream = llama.generate(prompt, temp=0.0)
    return [next(stream) for _ in range(n)]
