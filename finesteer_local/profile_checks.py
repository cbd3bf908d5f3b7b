"""What every field of a profile is held to; what is wrong is named by its field."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import ProfileError
from finesteer_local.steering import ACTIONS, ON_ANSWER, AnswerGate, Kinds

Array = NDArray[np.float32]

KIND = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_MAX_KINDS = 256
_MAX_HIDDEN = 4096
_MAX_TEXT = 4096
_MAX_EVERY = 64  # tokens
_MAX_FIRST = 4096  # tokens


def require(condition: bool, name: str, what: str) -> None:
    """Raise `ProfileError` unless `condition` holds of the field `name`."""
    if not condition:
        raise ProfileError(f"profile field {name}: {what}")


def check_array(name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    """Hold an array to float32, finite values and a shape, in which None is any length."""
    fits = array.ndim == len(shape) and all(want in (None, got) for got, want in zip(array.shape, shape, strict=True))
    wanted = " x ".join("any" if n is None else str(n) for n in shape)
    require(fits, name, f"shape {' x '.join(map(str, array.shape))}, expected {wanted}")
    require(array.dtype == np.float32, name, f"type {array.dtype}, expected float32")
    require(bool(np.isfinite(array).all()), name, "holds values that are not finite")


def check_number(name: str, number: float, low: float, high: float) -> None:
    """Hold a number to its range."""
    require(bool(np.isfinite(number)) and low <= number <= high, name, f"{number} is not in [{low:g}, {high:g}]")


def check_kinds(kinds: Kinds, n_embd: int) -> None:
    """Hold the kinds of request to their ranges."""
    names, n_kinds = kinds.names, len(kinds.kinds)
    require(1 <= n_kinds <= _MAX_KINDS, "kinds.names", f"{n_kinds} kinds are out of range")
    require(len(set(names)) == n_kinds, "kinds.names", "a name stands twice")
    for kind in kinds.kinds:
        require(bool(KIND.fullmatch(kind.name)), "kinds.names", f"{kind.name!r}; use lower-case letters, digits and _")
        texts = (kind.about, *kind.words, *kind.mlcommons, *kind.openai)
        require(all(len(text) <= _MAX_TEXT for text in texts), "kinds.about", f"{kind.name}: too long")
        sound = bool(kind.words) and all(text.strip() for text in kind.words)
        require(sound, "kinds.about", f"{kind.name}: its words are empty")
        check_number("kinds.about", kind.alone, 0.0, 1.0)
        require(
            kind.action in ACTIONS,
            "kinds.about",
            f"{kind.name}: action {kind.action!r} is none of {', '.join(ACTIONS)}",
        )
    n_inputs = n_embd
    require((kinds.hidden_weight is None) == (kinds.hidden_bias is None), "kinds.hidden", "a half of it is missing")
    if kinds.hidden_weight is not None and kinds.hidden_bias is not None:
        n_inputs = kinds.hidden_weight.shape[-1] if kinds.hidden_weight.ndim else 0
        require(1 <= n_inputs <= _MAX_HIDDEN, "kinds.hidden.weight", f"{n_inputs} hidden units are out of range")
        check_array("kinds.hidden.weight", kinds.hidden_weight, (n_embd, n_inputs))
        check_array("kinds.hidden.bias", kinds.hidden_bias, (n_inputs,))
    check_array("kinds.weight", kinds.weight, (n_inputs, n_kinds))
    check_array("kinds.bias", kinds.bias, (n_kinds,))
    check_number("kinds.slope", kinds.slope, 0.0, 1e9)
    check_number("kinds.offset", kinds.offset, -1e9, 1e9)


def check_answer_gate(gate: AnswerGate, n_embd: int, n_layer: int) -> None:
    """Hold the gate that reads answers to its ranges."""
    check_number("answer_gate.layer", gate.layer, 0, n_layer - 2)
    check_array("answer_gate.weight", gate.weight, (n_embd,))
    check_number("answer_gate.bias", gate.bias, -1e9, 1e9)
    check_number("answer_gate.decay", gate.decay, 0.0, 0.9999)
    check_number("answer_gate.threshold", gate.threshold, -1e9, 1e9)
    check_number("answer_gate.first", gate.first, 1, _MAX_FIRST)
    check_number("answer_gate.every", gate.every, 1, _MAX_EVERY)
    for name in ("layer", "first", "every"):
        number = getattr(gate, name)
        require(number == int(number), f"answer_gate.{name}", f"{number} is not a whole number")
    known = gate.action in ON_ANSWER
    require(known, "answer_gate.action", f"{gate.action!r} is none of {', '.join(ON_ANSWER)}")
