"""What the methods share: profiles made of plain vectors, and settings to choose among."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.evaluation.interventions import Intervention, ProfileSteering
from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import Profile
from finesteer_local.steering import AlwaysGate, Experts

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """One setting of a method, at any strength.

    Attributes:
        label: the setting, as JSON values.
        at: the method at a strength.
    """

    label: Mapping[str, Any]
    at: Callable[[float], Intervention]


def shared(vector: Array, vectors: Mapping[int, Array]) -> Array:
    """Several layers share the strength, so that one range of strengths suits one layer and many."""
    return np.asarray(vector / len(vectors), np.float32)


def always(name: str, model: ModelIdentity, vectors: Mapping[int, Array], strength: float) -> ProfileSteering:
    """Vectors by layer, (n_embd,), added to every token of every prompt: llama.cpp's control vector."""
    experts = {layer: Experts.fixed(shared(vector, vectors)) for layer, vector in vectors.items()}
    profile = Profile(name, model, AlwaysGate(), min(vectors), experts, strength=strength, scope="prompt")
    return ProfileSteering((profile,))


def principal_direction(deltas: Array, *, centred: bool = False) -> Array:
    """First principal component of differences (n, n_embd), as long as the differences reach along it on average.

    Its sign is that by which most differences point along it (repeng). Centred is repeng's `pca_diff`; not centred is
    its `pca_center`, and llama.cpp's cvector-generator.
    """
    _, _, components = np.linalg.svd(deltas - deltas.mean(axis=0) if centred else deltas, full_matrices=False)
    reach = deltas @ components[0]
    sign = 1.0 if (reach > 0).mean() >= 0.5 else -1.0
    return np.asarray(components[0] * sign * np.abs(reach).mean(), np.float32)
