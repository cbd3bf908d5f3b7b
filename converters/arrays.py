"""Plain arrays, one vector a layer: rows of one array, or arrays whose names hold the layer's number.

Two countings are about: by block (block N's output, llama.cpp's `l_out-N`), and by transformers' `hidden_states`,
whose entry 0 is the embeddings and whose entry N + 1 is block N's output. An array of as many rows as the model has
blocks counts by block; one row more is `hidden_states`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .foreign import Foreign, layer_number, plain_vectors, refuse, to_float32

COUNTINGS = ("block", "hidden_states")


@dataclass(frozen=True)
class Hints:
    """What a file does not say of itself: the model's size, and what the user said."""

    n_layer: int
    layer: int | None = None  # the layer of a file that holds one
    counting: str | None = None  # of `COUNTINGS`


def read_arrays(path: Path, format: str, arrays: Mapping[Any, NDArray[Any]], hints: Hints, **more: Any) -> Foreign:
    """The vectors in `arrays`, by name or layer.

    Raises:
        ProfileError: the names hold no layer numbers, or an array is not one vector a layer.
    """
    numbers = {name: _number(path, name) for name in arrays}
    if len(arrays) == 1 and next(iter(numbers.values())) is None:
        [array] = arrays.values()
        rows, counting = _rows(path, array, hints)
    else:
        unnumbered = [str(name) for name, number in numbers.items() if number is None]
        if unnumbered or len(set(numbers.values())) < len(numbers):
            shown = ", ".join(repr(name[:40]) for name in (unnumbered or [str(name) for name in numbers])[:3])
            raise refuse(path, f"its arrays need one layer number each in their names; these do not fit: {shown}")
        rows = {number: arrays[name] for name, number in numbers.items() if number is not None}
        named_so = all("hidden" in str(name) for name in arrays)
        counting = hints.counting or ("hidden_states" if named_so else "block")
    vectors = {n: to_float32(path, f"the vector of layer {n}", _flat(row)) for n, row in rows.items()}
    return count_by(path, format, vectors, counting, hints.n_layer, **more)


def count_by(
    path: Path, format: str, vectors: Mapping[int, NDArray[np.float32]], counting: str, n_layer: int, **more: Any
) -> Foreign:
    """A `Foreign` of plain vectors whose layers are counted as `counting` says."""
    if counting == "block":
        return plain_vectors(path, format, vectors, **more)
    cannot = {
        -1: "hidden_states[0] is the embeddings, before the first block",
        n_layer - 1: f"hidden_states[{n_layer}] has passed the final norm; it is not the last block's output",
    }
    return plain_vectors(path, format, {n - 1: vector for n, vector in vectors.items()}, cannot=cannot, **more)


def _number(path: Path, name: str | int) -> int | None:
    if isinstance(name, int):
        return layer_number(path, "a layer", str(name))
    found = re.findall(r"[0-9]+", name)
    return layer_number(path, repr(name[:40]), found[0]) if len(found) == 1 else None


def _rows(path: Path, array: NDArray[Any], hints: Hints) -> tuple[dict[int, NDArray[Any]], str]:
    """The vectors of an array without a number in its name, and how they are counted."""
    row = _flat(array)
    if row.ndim == 1:
        if hints.layer is None:
            raise refuse(path, "it holds one vector and not its layer; say it with --layer N")
        return {hints.layer: row}, hints.counting or "block"
    expected = {"block": hints.n_layer, "hidden_states": hints.n_layer + 1}
    for counting in (hints.counting,) if hints.counting else COUNTINGS:
        if array.ndim == 2 and len(array) == expected[counting]:
            return dict(enumerate(array)), counting
    raise refuse(
        path,
        f"it has shape {' x '.join(map(str, array.shape))}, expected one row for each of the model's "
        f"{hints.n_layer} blocks (or {hints.n_layer + 1} rows, as in hidden_states)",
    )


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """`(1, n)` and `(1, 1, n)` are one vector."""
    return array.reshape(-1) if array.ndim > 1 and array.size == array.shape[-1] else array
