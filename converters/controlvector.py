"""Plain llama.cpp control vectors: architecture `controlvector`, one tensor `direction.N` a layer, nothing else.

llama.cpp's loader (common_control_vector_load) rejects a file with any other tensor, a tensor that is not
one-dimensional float32, or one for layer 0. repeng, EasySteer and saklas write this format too; `direction.N` is added
to the output of block N in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from finesteer_local.errors import ProfileError
from finesteer_local.gguf_file import DamagedGGUF, open_gguf
from finesteer_local.paths import atomic_write

from .foreign import Foreign, layer_number, plain_vectors, refuse, refuse_other_operators

if TYPE_CHECKING:
    from finesteer_local.profile import Profile

Array = NDArray[np.float32]

ARCHITECTURE = "controlvector"
_MAX_ITEMS = 1 << 14  # keys, array items and tensors


def read(path: Path) -> Foreign:
    """Read a control vector.

    Raises:
        ProfileError: it is damaged, another kind of GGUF file, or steers something other than the blocks' outputs.
        OSError: it cannot be read.
    """
    try:
        reader = open_gguf(path, max_items=_MAX_ITEMS)
        settings = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except DamagedGGUF as error:
        raise refuse(path, error.problem) from error
    except UnicodeDecodeError as error:
        raise refuse(path, "a key in it is not UTF-8") from error
    architecture = settings.get("general.architecture")
    if architecture == "finesteer":
        raise refuse(path, f"it is a profile already; add it with: finesteer-local profiles add {path}")
    if architecture != ARCHITECTURE:
        raise refuse(path, f"its general.architecture is {str(architecture)[:40]!r}, not {ARCHITECTURE!r}")
    refuse_other_operators(path, settings)
    _refuse_other_targets(path, settings)
    vectors = {}
    for tensor in reader.tensors:
        prefix, _, number = tensor.name.partition(".")
        if prefix != "direction":
            raise refuse(path, f"tensor {tensor.name[:60]!r} does not belong in a control vector")
        if tensor.tensor_type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            raise refuse(path, f"tensor {tensor.name} has type {tensor.tensor_type.name}, expected F32")
        vectors[layer_number(path, "a direction", number)] = np.array(tensor.data, np.float32)
    hint = settings.get(f"{ARCHITECTURE}.model_hint", "")
    return plain_vectors(path, "llama.cpp control vector", vectors, model_hint=hint if isinstance(hint, str) else "")


def _refuse_other_targets(path: Path, settings: Mapping[str, Any]) -> None:
    """EasySteer writes directions for attention heads and router logits into the same format, and says so in a key."""
    native = settings.get(f"{ARCHITECTURE}.easysteer")
    if not isinstance(native, str):
        return
    try:
        component = json.loads(native).get("component")
    except (ValueError, AttributeError, RecursionError) as error:
        raise refuse(path, f"its key {ARCHITECTURE}.easysteer is not what EasySteer writes") from error
    if component not in (None, "hidden_states"):
        raise refuse(path, f"its vectors are for {str(component)[:40]!r}, not for the hidden states")


def expert_shares(profile: Profile, layer: int) -> Array | None:
    """The share of the training pairs that each expert of `layer` stands for, shape (K,), sum 1; None where unknown.

    `profile.training["expert_shares"]` holds them by layer, counts or shares.
    """
    known = profile.training.get("expert_shares")
    listed = known.get(str(layer)) if isinstance(known, Mapping) else known
    n_experts = len(profile.experts[layer].prototypes)
    if not isinstance(listed, list) or len(listed) != n_experts:
        return None
    if not all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in listed):
        return None
    shares = np.asarray(listed, np.float32)
    if not np.isfinite(shares).all() or shares.min() < 0 or not shares.sum() > 0:
        return None
    return np.asarray(shares / shares.sum(), np.float32)


def average_vectors(profile: Profile) -> dict[int, Array]:
    """`strength * mean of the prototypes` for every steered layer, shape (n_embd,).

    The mean is weighted by the experts' shares of the training pairs where the profile tells them.
    """
    vectors = {}
    for layer in profile.layers:
        prototypes = profile.experts[layer].prototypes
        shares = expert_shares(profile, layer)
        mean = prototypes.mean(axis=0) if shares is None else shares @ prototypes
        vectors[layer] = np.asarray(np.float32(profile.strength) * mean, np.float32)
    return vectors


def write(path: str | Path, vectors: Mapping[int, Array], *, model_hint: str) -> None:
    """Write `vectors`, layer -> (n_embd,), for a model of the architecture `model_hint`.

    Raises:
        ProfileError: there is no vector, or one that llama.cpp would reject.
        StorageError: the file cannot be written.
    """
    if not vectors:
        raise ProfileError("there is no vector to write")
    for layer, vector in vectors.items():
        if layer < 1 or vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
            raise ProfileError(f"the vector of layer {layer} cannot be a control vector")
    with atomic_write(path) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
            for layer in sorted(vectors):
                writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vectors[layer], np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
