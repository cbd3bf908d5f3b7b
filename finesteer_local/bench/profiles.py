"""Profiles as a benchmark needs them: gates held open or shut, and a stand-in for a model that has none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import Profile
from finesteer_local.steering import AlwaysGate, ContrastiveGate, Experts, Gate

Array = NDArray[np.float32]

N_EXPERTS, RANK, WIDTH, N_HEADS = 8, 10, 64, 32
DEPTH = 0.44  # of the model's layers: where trained profiles steer


@dataclass(frozen=True, eq=False)
class HeldGate(AlwaysGate):
    """A gate that does all of its work, and then gives `g` whatever came of it."""

    gate: Gate
    g: float

    @property
    def pools(self) -> bool:  # type: ignore[override]
        return self.gate.pools

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return self.gate.whole

    @property
    def threshold(self) -> float:
        return self.gate.threshold

    def summary(self, states: Array) -> Array:
        return self.gate.summary(states)

    def score(self, h: Array, summary: Array) -> float:
        return self.gate.score(h, summary)

    def value(self, score: float) -> float:
        self.gate.value(score)
        return self.g


def closed(profile: Profile) -> Profile:
    """The profile with its gate held shut."""
    return replace(profile, gate=HeldGate(profile.gate, 0.0))


def opened(profile: Profile) -> Profile:
    """The profile with its gate held open."""
    return replace(profile, gate=HeldGate(profile.gate, 1.0))


def several(profiles: list[Profile], n: int) -> list[Profile]:
    """`n` profiles that are held open: the given ones in turn, under names of their own."""
    chosen = [opened(profiles[i % len(profiles)]) for i in range(n)]
    # Together they steer as one does: text that falls apart could end sooner, or later.
    return [replace(profile, name=f"bench-{i}", strength=profile.strength / n) for i, profile in enumerate(chosen)]


def stand_in(model: ModelIdentity) -> Profile:
    """A random profile of the usual kind and size. It means nothing, and costs what a trained one costs."""
    rng, n_embd = np.random.default_rng(0), model.n_embd

    def normal(*shape: int) -> Array:
        return np.asarray(rng.standard_normal(shape) / np.sqrt(n_embd), np.float32)

    layer = min(max(round(DEPTH * model.n_layer), 1), model.n_layer - 2)
    gate = ContrastiveGate(
        mean=normal(n_embd),
        scale=np.ones(n_embd, np.float32),
        query=normal(n_embd, N_HEADS),
        value_weight=normal(n_embd, N_HEADS),
        last_weight=normal(n_embd),
        bias=0.0,
        low=0.0,
        high=1.0,
    )
    experts = Experts(
        prototypes=normal(N_EXPERTS, n_embd),
        router_weight=normal(n_embd, N_EXPERTS),
        router_bias=normal(N_EXPERTS),
        residual_basis=np.linalg.qr(normal(n_embd, min(RANK, n_embd)))[0],
        hidden_weight=normal(n_embd, WIDTH),
        hidden_bias=normal(WIDTH),
        output_weight=normal(WIDTH, min(RANK, n_embd)),
        output_bias=normal(min(RANK, n_embd)),
    )
    return Profile(
        name="stand-in", model=model, gate=gate, gate_layer=layer, experts={layer: experts}, strength=0.01, scope="turn"
    )
