"""The FineSteer authors' MoSE checkpoints (github.com/YukinoAsuna/FineSteer, `finesteer_moe.MoSE`).

    v(h) = softmax((W_K C + b_K)(W_Q h + b_Q) / sqrt(d)) V(C) + U beta(h)

with `V` the identity (`MoSE`) or a linear map (`orthogonal_residual`) and `beta` a ReLU network. Everything but `h` is
constant after training, so keys and values are multiplied out. Their layer L reads `hidden_states[L]`, the *input* of
block L, and steers the output of block L: the router reads `l_out-(L-1)`, the vector is added to `l_out-L`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.steering import Experts

from .foreign import Foreign, refuse, to_float32, unknown_names

_NEEDED = ("prototypes", "residual_basis", "query.weight", "key.weight", "beta.0.weight", "beta.2.weight")
_OPTIONAL = ("query.bias", "key.bias", "value.weight", "value.bias", "beta.0.bias", "beta.2.bias")
_STRENGTH = 2.5  # the default of their command line
_MAX_EXPERTS = 256


def state_dict(value: Any) -> Mapping[str, Any] | None:
    """The state dict in what a `.pt` file holds, if it is a MoSE checkpoint's."""
    state = value.get("state_dict", value) if isinstance(value, dict) else None
    return state if isinstance(state, dict) and {"prototypes", "residual_basis"} <= state.keys() else None


def read(path: Path, state: Mapping[str, Any], layer: int | None) -> Foreign:
    """Read a checkpoint's state dict.

    Args:
        layer: as the authors' `--layer`; None takes it from the file's name (`layer12`).

    Raises:
        ProfileError: a tensor is missing, unknown or misshapen, or there is no layer.
    """
    missing = [name for name in _NEEDED if name not in state]
    if missing or (extra := unknown_names(state, (*_NEEDED, *_OPTIONAL))):
        raise refuse(path, f"a MoSE checkpoint has no {missing[0]}" if missing else f"it holds {extra}: no MoSE")
    arrays: dict[str, NDArray[np.float64]] = {}
    for name, array in state.items():
        if not isinstance(array, np.ndarray):
            raise refuse(path, f"{name} is no tensor")
        arrays[name] = to_float32(path, name, array).astype(np.float64)
    layer = _layer_of(path) if layer is None else layer
    if layer < 1:
        raise refuse(path, "its layer 0 reads the embeddings, which llama.cpp does not show")
    experts = _fold(path, arrays)
    return Foreign("FineSteer MoSE checkpoint", {layer: experts}, reads=layer - 1, strength=_STRENGTH)


def _layer_of(path: Path) -> int:
    found = re.search(r"(?:layer|(?<![a-z])l)[_.-]?([0-9]{1,3})(?![0-9])", path.stem.lower())
    if not found:
        raise refuse(path, "a MoSE checkpoint does not hold its layer; say it with --layer N (their own number)")
    return int(found[1])


def _fold(path: Path, arrays: Mapping[str, NDArray[np.float64]]) -> Experts:
    """Keys and values multiplied out: what is left depends on `h` only."""
    prototypes, basis = arrays["prototypes"], arrays["residual_basis"]
    if prototypes.ndim != 2 or not 1 <= len(prototypes) <= _MAX_EXPERTS or basis.ndim != 2:
        raise refuse(path, "prototypes or residual_basis is no table of vectors")
    n_embd, rank = prototypes.shape[1], basis.shape[1]
    d, width = (arrays[name].shape[0] if arrays[name].ndim else 0 for name in ("query.weight", "beta.0.weight"))
    shapes: dict[str, tuple[int, ...]] = {
        "residual_basis": (n_embd, rank),
        "query.weight": (d, n_embd),
        "query.bias": (d,),
        "key.weight": (d, n_embd),
        "key.bias": (d,),
        "value.weight": (n_embd, n_embd),
        "value.bias": (n_embd,),
        "beta.0.weight": (width, n_embd),
        "beta.0.bias": (width,),
        "beta.2.weight": (rank, width),
        "beta.2.bias": (rank,),
    }
    for name, array in arrays.items():
        if shapes.get(name, array.shape) != array.shape or 0 in array.shape:
            raise refuse(path, f"{name} has shape {' x '.join(map(str, array.shape))}, which does not fit the others")

    def linear(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        bias = arrays.get(f"{name}.bias")
        y: NDArray[np.float64] = x @ arrays[f"{name}.weight"].T
        return y if bias is None else y + bias

    def single(array: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.ascontiguousarray(to_float32(path, "a folded weight", array))

    keys = linear("key", prototypes) / np.sqrt(d)  # (K, d)
    values = linear("value", prototypes) if "value.weight" in arrays else prototypes
    return Experts(
        prototypes=single(values),
        router_weight=single(arrays["query.weight"].T @ keys.T),
        router_bias=single(keys @ arrays.get("query.bias", np.zeros(d))),
        residual_basis=single(basis),
        hidden_weight=single(arrays["beta.0.weight"].T),
        hidden_bias=single(arrays.get("beta.0.bias", np.zeros(width))),
        output_weight=single(arrays["beta.2.weight"].T),
        output_bias=single(arrays.get("beta.2.bias", np.zeros(rank))),
    )
