"""Whether llama.cpp can steer a model, and in which layers, found out by trying."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from llama_cpp import llama_cpp

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.control import set_control_vector
from finesteer_local.runtime.tap import Array, Handler, Rows
from finesteer_local.runtime.tapped import TappedLlama


def steerable_layers(llama: TappedLlama, architecture: str) -> frozenset[int]:
    """The layers whose output the tap sees and steers just as a control vector does; empties the KV cache.

    One token is read twice: with vectors that the tap adds in every layer from 1 on, and with the same vectors as
    control vectors. A few architectures have no `l_out` node or more than one row a token in it, and a few ignore
    control vectors and say nothing: there the two passes differ by the vector.

    Returns:
        Layers that can be steered; 0, for which llama.cpp has no control vector, where it is shown at least.

    Raises:
        SteeringError: none can be, or the hidden state is not finite.
    """
    n_layer, n_embd = llama.n_layer, llama.n_embd()
    direction = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), n_embd)
    vectors: dict[int, Array] = {}
    written: dict[int, Array] = {}
    n_rows = set[int]()

    def write(layer: int, rows: Rows) -> bool:
        n_rows.add(rows.n_rows)
        if rows.n_rows == 1:
            state = rows.read(0, 1)
            if layer > 0:
                vectors[layer] = direction * (np.abs(state).mean() / 2)
                rows.write(0, state + vectors[layer])
            written[layer] = state[0] + vectors.get(layer, 0)
        return True

    try:
        _read_token(llama, dict.fromkeys(range(n_layer), write))
        controlled = _controlled_states(llama, vectors)
    finally:
        llama.forget()
    if not n_rows:
        raise SteeringError(f"llama.cpp shows no layer outputs (l_out) for architecture {architecture!r}: no steering")
    if not written:  # Gemma 3n: four streams side by side
        raise SteeringError(
            f"llama.cpp shows {max(n_rows)} rows a token for architecture {architecture!r}: no steering"
        )
    if not all(np.isfinite(state).all() for state in written.values()):
        raise SteeringError("the model's hidden state is not finite; this model file is damaged")
    found = {
        layer
        for layer, vector in vectors.items()
        # By how much of the vector the passes differ; other rounding, as on a GPU, hardly points its way.
        if layer in controlled and abs((written[layer] - controlled[layer]) @ vector) < 0.5 * (vector @ vector)
    }
    if not found:
        raise SteeringError(f"llama.cpp ignores control vectors for architecture {architecture!r}: no steering")
    return frozenset(found | (written.keys() & {0}))


def _controlled_states(llama: TappedLlama, vectors: Mapping[int, Array]) -> dict[int, Array]:
    """The layers' output for the one token under control vectors; nothing stays."""
    states: dict[int, Array] = {}

    def look(layer: int, rows: Rows) -> bool:
        states[layer] = rows.read(0, 1)[0]
        return True

    if not vectors:
        return states

    options = {"n_layer": llama.n_layer, "n_embd": llama.n_embd()}
    try:
        set_control_vector(llama.ctx, vectors, **options)
        _read_token(llama, dict.fromkeys(vectors, look))
    finally:
        set_control_vector(llama.ctx, {}, **options)
    return states


def _read_token(llama: TappedLlama, handlers: Mapping[int, Handler]) -> None:
    llama.keep(0)
    llama.tap.arm(handlers)
    try:
        llama.decode_rows([max(llama.token_bos(), 0)], 0)
    finally:
        llama.tap.disarm()


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
