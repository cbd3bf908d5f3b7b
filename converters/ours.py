"""Our own vectors in formats that other programs read: safetensors, and JSON.

A tensor `layer_N` (safetensors) or an entry `vectors["N"]` (JSON) is added to the output of block N; the strength is in
it. docs/converters.md describes both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.paths import atomic_write

from . import safetensors
from .foreign import Foreign, layer_number, plain_vectors, refuse, to_float32

if TYPE_CHECKING:
    from finesteer_local.profile import Profile

Array = NDArray[np.float32]

FORMAT = "finesteer-vectors"
VERSION = 1


def write_safetensors(path: str | Path, vectors: Mapping[int, Array], profile: Profile) -> None:
    """Write `vectors`, layer -> (n_embd,), as tensors `layer_N`; raises `StorageError`."""
    tensors = {f"layer_{layer}": vector for layer, vector in vectors.items()}
    safetensors.write(path, tensors, {key: str(value) for key, value in _about(profile).items()})


def write_json(path: str | Path, vectors: Mapping[int, Array], profile: Profile) -> None:
    """Write `vectors`, layer -> (n_embd,), as JSON; raises `StorageError`."""
    numbers = {str(layer): [float(x) for x in vector] for layer, vector in sorted(vectors.items())}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({**_about(profile), "vectors": numbers}) + "\n", encoding="utf-8")


def is_vectors(value: Any) -> bool:
    """Whether a JSON value is what `write_json` writes."""
    return isinstance(value, dict) and value.get("format") == FORMAT


def read_json(path: Path, value: Mapping[str, Any]) -> Foreign:
    """Read what `write_json` wrote; raises `ProfileError`."""
    if value.get("version") != VERSION:
        raise refuse(path, f"its version {str(value.get('version'))[:20]} needs a newer finesteer-local")
    listed = value.get("vectors")
    if not isinstance(listed, dict):
        raise refuse(path, "its vectors are missing")
    vectors = {}
    for key, numbers in listed.items():
        if not isinstance(numbers, list) or not all(type(n) in (int, float) for n in numbers):
            raise refuse(path, f"vectors[{key[:20]!r}] is not a list of numbers")
        try:
            array = np.array(numbers, np.float64)
        except OverflowError as error:
            raise refuse(path, f"vectors[{key[:20]!r}] is not finite") from error
        vectors[layer_number(path, "vectors", key)] = to_float32(path, f"vectors[{key[:20]!r}]", array)
    hint = value.get("architecture", "")
    return plain_vectors(path, "finesteer-local vectors", vectors, model_hint=hint if isinstance(hint, str) else "")


def _about(profile: Profile) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "profile": profile.name,
        "model": profile.model.name,
        "architecture": profile.model.architecture,
        "fingerprint": profile.model.fingerprint,
        "added_to": "the output of block N (llama.cpp l_out-N, transformers hidden_states[N+1])",
    }
