"""Whether llama.cpp can steer a model, found out by trying."""

from __future__ import annotations

import numpy as np
from llama_cpp import llama_cpp

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.control import set_control_vector
from finesteer_local.runtime.tap import Array, Rows
from finesteer_local.runtime.tapped import TappedLlama


def check_steerable(llama: TappedLlama, architecture: str) -> None:
    """Check that the tap sees a layer's output and that a control vector moves the logits; empties the KV cache.

    A few architectures have no `l_out` node or more than one row a token in it, and a few ignore control vectors and
    say nothing.

    Raises:
        SteeringError: the architecture cannot be steered, or its hidden state is not finite.
    """
    layer, n_embd = max(llama.n_layer // 2, 1), llama.n_embd()
    seen: list[Array] = []

    def look(_: int, rows: Rows) -> bool:
        seen.append(rows.read(0, rows.n_rows))
        return True

    llama.tap.arm({layer: look})
    try:
        plain = _logits(llama)
    finally:
        llama.tap.disarm()
    if not seen:
        raise SteeringError(f"llama.cpp shows no layer outputs (l_out) for architecture {architecture!r}: no steering")
    if len(seen[0]) != 1:  # Gemma 3n: four streams side by side
        raise SteeringError(
            f"llama.cpp shows {len(seen[0])} rows a token for architecture {architecture!r}: no steering"
        )
    if not np.isfinite(seen[0]).all():
        raise SteeringError("the model's hidden state is not finite; this model file is damaged")
    vector = np.linspace(-1, 1, n_embd, dtype=np.float32) * np.abs(seen[0]).max()
    steered = _controlled(llama, layer, vector)
    if np.array_equal(plain, steered):
        raise SteeringError(f"llama.cpp ignores control vectors for architecture {architecture!r}: no steering")


def tap_against_control_vector(llama: TappedLlama) -> float:
    """How far logits that the tap steered are from those that the control vector steered; empties the KV cache.

    Both add the same vector at the same layer: the greatest difference over the standard deviation of the logits, 0
    where both round alike, as on the CPU.
    """
    layer, n_embd = max(llama.n_layer // 2, 1), llama.n_embd()
    vector = np.zeros(n_embd, np.float32)

    def add(_: int, rows: Rows) -> bool:
        state = rows.read(0, 1)
        vector[:] = np.linspace(-1, 1, n_embd, dtype=np.float32) * np.abs(state).max()
        rows.write(0, state + vector)
        return True

    llama.tap.arm({layer: add})
    try:
        written = _logits(llama)
    finally:
        llama.tap.disarm()
    controlled = _controlled(llama, layer, vector)
    return float(np.abs(written - controlled).max() / max(float(controlled.std()), np.finfo(np.float32).tiny))


def _controlled(llama: TappedLlama, layer: int, vector: Array) -> Array:
    """Logits of one token under a control vector; neither stays."""
    options = {"n_layer": llama.n_layer, "n_embd": llama.n_embd()}
    try:
        set_control_vector(llama.ctx, {layer: vector}, **options)
        return _logits(llama)
    finally:
        set_control_vector(llama.ctx, {}, **options)
        llama.forget()


def _logits(llama: TappedLlama) -> Array:
    llama.forget()
    llama.decode_rows([max(llama.token_bos(), 0)], 0)
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy()
