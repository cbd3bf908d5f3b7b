"""`cast`: conditional activation steering (arXiv 2409.05907).

    H <- H + f(sim(h, proj_c h)) * strength * v,    proj_c h = tanh((c c' / c'c) h),    sim the cosine

`c`, the condition vector, is the first principal component of prompts that need intervention and prompts that do not,
centred pair by pair; `f` is 1 on one side of a threshold. Layer, side and threshold are those with the best F1 on
validation prompts, and so is whether `h` is the mean over the prompt or its last token (the authors' code offers both).
`v`, the behaviour vector, is the first principal component of the answers' states, centred pair by pair, at several
layers, and steers every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from finesteer_local.evaluation.baselines.vectors import Candidate, principal_direction, shared
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.material import BAND, SINGLE, UPPER_BAND, Material, PromptStates
from finesteer_local.profile import Profile
from finesteer_local.steering import Experts, Gate

SOURCE = "arXiv 2409.05907"
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LastTokenGate:
    """Opens where the last token's state is similar, or dissimilar, enough to its projection on the condition."""

    kind: ClassVar[str] = "cast-last"
    pools: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    condition: Array  # c, (n_embd,), of length 1
    side: int  # 1: above the threshold, -1: below it
    threshold: float

    def summary(self, states: Array) -> Array:
        return states[:, :0]

    def score(self, h: Array, summary: Array) -> float:
        return float(self.side * similarity(h[None], self.condition)[0])

    def value(self, score: float) -> float:
        return float(score >= self.threshold)


@dataclass(frozen=True, eq=False)
class MeanGate(LastTokenGate):
    """The same for the mean over the last user turn."""

    kind: ClassVar[str] = "cast-mean"
    pools: ClassVar[bool] = True

    def summary(self, states: Array) -> Array:
        return states

    def score(self, h: Array, summary: Array) -> float:
        return super().score(summary.mean(axis=0), summary)


class ConditionedProfile(Profile):
    """A profile with a gate that no profile file holds, and that therefore is not checked as files are."""

    def __post_init__(self) -> None:
        pass


def similarity(states: Array, condition: Array) -> Array:
    """`cos(h, tanh((c'h) c))` for states (n, n_embd) and a condition (n_embd,) of length 1; shape (n,)."""
    projected = np.tanh((states @ condition)[:, None] * condition)
    lengths = np.linalg.norm(states, axis=1) * np.linalg.norm(projected, axis=1)
    return np.asarray((states * projected).sum(axis=1) / np.maximum(lengths, 1e-12), np.float32)


def best_threshold(positive: Array, contrast: Array) -> tuple[float, float]:
    """The threshold from which on scores count as positive with the best F1, and that F1."""
    scores = np.r_[positive, contrast]
    thresholds = np.unique(scores)
    hits = len(positive) - np.searchsorted(np.sort(positive), thresholds)
    false = len(contrast) - np.searchsorted(np.sort(contrast), thresholds)
    f1 = 2 * hits / (hits + false + len(positive))
    best = int(f1.argmax())
    below = thresholds[best - 1] if best else thresholds[0] - 1e-3
    return float((thresholds[best] + below) / 2), float(f1[best])


def find_condition(material: Material) -> tuple[Gate, int, dict[str, Any]]:
    """The gate with the best F1 on validation prompts, the layer that it reads, and how it was found."""
    best: tuple[float, Gate, int] | None = None
    rng = np.random.default_rng(material.seed)
    n_pairs = min(len(material.positive.learn), len(material.contrast.learn))
    rows = [rng.permutation(list(side.learn))[:n_pairs] for side in (material.positive, material.contrast)]
    for layer in material.positive.layers:
        for kind, read in ((LastTokenGate, PromptStates.last), (MeanGate, PromptStates.mean)):
            inside, outside = read(material.positive, layer), read(material.contrast, layer)
            condition = principal_direction(inside[rows[0]] - outside[rows[1]])
            condition = np.asarray(condition / np.linalg.norm(condition), np.float32)
            held = [
                similarity(states[list(side.held)], condition)
                for states, side in ((inside, material.positive), (outside, material.contrast))
            ]
            for side in (1, -1):
                threshold, f1 = best_threshold(side * held[0], side * held[1])
                if best is None or f1 > best[0]:
                    best = (f1, kind(condition, side, threshold), layer)
    assert best is not None
    f1, gate, layer = best
    return gate, layer, {"condition_layer": layer, "condition": gate.kind, "f1": round(f1, 4)}


def candidates(material: Material) -> list[Candidate]:
    """The best condition, with the behaviour at one layer and at ranges of layers."""
    gate, gate_layer, found = find_condition(material)

    def at(vectors: dict[int, Array], strength: float) -> ProfileSteering:
        experts = {layer: Experts.fixed(shared(vector, vectors)) for layer, vector in vectors.items()}
        profile = ConditionedProfile("cast", material.model, gate, gate_layer, experts, strength, scope="prompt")
        return ProfileSteering((profile,))

    ranges = [material.layers(BAND), material.layers(UPPER_BAND)] + [[layer] for layer in material.layers(SINGLE)]
    return [
        Candidate(
            {"layers": layers, **found},
            partial(at, {layer: principal_direction(material.learnt_deltas(layer)) for layer in layers}),
        )
        for layers in ranges
    ]
