"""saklas: profiles (`layer_N` tensors and a JSON beside them) and fitted manifolds (`layer_N.basis` and more).

A profile's vectors are added to the blocks' outputs, their lengths relative to each other. A manifold is a vector only
where it is flat and of one dimension; then it is folded as saklas's own GGUF export does it (`folded_directions`):
the basis times the layer's share. Curved ones move the hidden state along a surface, which no vector does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .foreign import Foreign, layer_number, plain_vectors, refuse, refuse_other_operators, to_float32
from .jsonfile import parse_json

_LENGTHS = "saklas gives its vectors lengths relative to each other: find the strength that suits"


def sidecar(path: Path) -> dict[str, Any] | None:
    """The JSON beside a safetensors file, if saklas wrote it.

    Raises:
        ProfileError: it is damaged, or was written for other tensors.
        OSError: it cannot be read.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    value = parse_json(beside, beside.read_bytes(), "the file")
    if not isinstance(value, dict) or "saklas_version" not in value:
        return None
    expected = value.get("tensor_sha256")
    if expected is not None and expected != hashlib.sha256(path.read_bytes()).hexdigest():
        raise refuse(path, f"{beside.name} was written for other tensors (tensor_sha256 differs)")
    refuse_other_operators(beside, {**value, **_table(value.get("provenance"))})
    return value


def is_manifold(tensors: Mapping[str, NDArray[Any]]) -> bool:
    """Whether these are a fitted manifold's tensors."""
    return any(name.startswith("layer_") and name.endswith(".basis") for name in tensors)


def read_profile(path: Path, tensors: Mapping[str, NDArray[Any]]) -> Foreign:
    """A profile's vectors; raises `ProfileError`."""
    vectors = {}
    for name, tensor in tensors.items():
        if not name.startswith("layer_"):
            raise refuse(path, f"tensor {name[:40]!r} does not belong in a saklas profile")
        vectors[layer_number(path, name[:40], name.removeprefix("layer_"))] = to_float32(path, name[:40], tensor)
    return plain_vectors(path, "saklas profile", vectors, notes=(_LENGTHS,))


def read_manifold(path: Path, tensors: Mapping[str, NDArray[Any]], beside: Mapping[str, Any] | None) -> Foreign:
    """A flat manifold of one dimension, folded; raises `ProfileError` for any other."""
    if beside is None:
        raise refuse(path, f"a saklas manifold needs the file {path.with_suffix('.json').name} beside it")
    shares = _table(beside.get("mahalanobis_share_per_layer"))
    layers: dict[int, dict[str, NDArray[Any]]] = {}
    for name, tensor in tensors.items():
        head, _, part = name.partition(".")
        if head.startswith("layer_"):
            layers.setdefault(layer_number(path, name[:40], head.removeprefix("layer_")), {})[part] = tensor
    vectors = {}
    for layer, parts in layers.items():
        if parts.keys() - {"mean", "basis", "node_coords", "affine_map"}:
            raise refuse(path, f"layer {layer} is a curved manifold: it moves along a surface, which no vector does")
        basis, share = parts.get("basis"), shares.get(str(layer))
        if basis is None or basis.ndim != 2 or type(share) not in (int, float):
            raise refuse(path, f"layer {layer} has no basis or no mahalanobis_share_per_layer")
        if len(basis) != 1:
            raise refuse(path, f"layer {layer} has {len(basis)} dimensions; only a manifold of one is a vector")
        scaled = to_float32(path, f"the basis of layer {layer}", basis[0]) * np.float32(share)
        vectors[layer] = np.asarray(scaled, np.float32)
    return plain_vectors(path, "saklas manifold of one dimension", vectors, notes=(_LENGTHS,))


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
