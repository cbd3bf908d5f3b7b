"""IBM's activation-steering library (CAST, arXiv 2409.05907): `.svec` files, JSON.

A vector of layer L is added to the *input* of block L (`LeashLayer.forward`), which is the output of block L-1. A
condition at layer L looks at the same place: with `x` the mean over the prompt's tokens, or the last token,

    similarity = cos(x, tanh(c c'x / c'c))

opens the gate where it is above the threshold (their comparator "smaller": the threshold is the smaller one) or below
it ("larger").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.steering import ConditionGate

from .foreign import Foreign, check_vector, layer_number, plain_vectors, refuse, refuse_other_operators, to_float32
from .jsonfile import parse_json

Array = NDArray[np.float32]


def is_svec(value: Any) -> bool:
    """Whether a JSON value is a `.svec` file's."""
    return isinstance(value, dict) and isinstance(value.get("directions"), dict)


def read(path: Path, value: Mapping[str, Any]) -> Foreign:
    """The behaviour vectors of a `.svec` file.

    Raises:
        ProfileError: a direction is no vector, or the file asks for more than adding it.
    """
    refuse_other_operators(path, value)
    hint = value.get("model_type", "")
    vectors = {layer - 1: vector for layer, vector in _directions(path, value).items()}
    return plain_vectors(
        path,
        "activation-steering vector (.svec)",
        vectors,
        model_hint=hint if isinstance(hint, str) else "",
        cannot={-1: "it is added to the embeddings, before the first block"},
        notes=("its layer N is the input of block N: llama.cpp's layer N - 1",),
    )


def read_condition(
    path: Path, layer: int, threshold: float, *, opens_above: bool, mean: bool, n_embd: int
) -> tuple[ConditionGate, int]:
    """The gate of a condition vector, and the layer it reads (llama.cpp's).

    Args:
        layer: IBM's `condition_layer_ids`, one of them.
        opens_above: their comparator "smaller".
        mean: over the prompt's tokens; else its last token.

    Raises:
        ProfileError: the file has no such direction, or llama.cpp cannot show that layer.
        OSError: it cannot be read.
    """
    value = parse_json(path, path.read_bytes(), "the file")
    if not is_svec(value):
        raise refuse(path, "it is no .svec file: there are no 'directions' in it")
    directions = _directions(path, value)
    if layer not in directions:
        raise refuse(path, f"it has no direction for layer {layer}")
    if layer < 1:
        raise refuse(path, "a condition at layer 0 looks at the embeddings, which llama.cpp does not show")
    direction = directions[layer]
    check_vector(path, f"the direction of layer {layer}", direction)
    if len(direction) != n_embd or not direction.any():
        raise refuse(path, f"the direction of layer {layer} has {len(direction)} numbers, the model is {n_embd} wide")
    gate = ConditionGate(direction, limit=threshold, sign=1.0 if opens_above else -1.0, over_prompt=float(mean))
    return gate, layer - 1


def _directions(path: Path, value: Mapping[str, Any]) -> dict[int, Array]:
    directions = {}
    for key, numbers in value["directions"].items():
        name = f"directions[{key[:20]!r}]"
        while isinstance(numbers, list) and len(numbers) == 1 and isinstance(numbers[0], list):
            numbers = numbers[0]
        if not isinstance(numbers, list) or not all(type(n) in (int, float) for n in numbers):
            raise refuse(path, f"{name} is not a list of numbers")
        try:
            array = np.array(numbers, np.float64)
        except OverflowError as error:
            raise refuse(path, f"{name} is not finite") from error
        directions[layer_number(path, "directions", key)] = to_float32(path, name, array)
    return directions
