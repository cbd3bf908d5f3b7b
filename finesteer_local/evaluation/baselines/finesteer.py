"""`finesteer`: the paper's SCS gate and MoSE experts, and nothing else (arXiv 2604.15488).

    H <- H + strength * g(h) * v(h)

`g` compares the share of the last token's energy inside the subspace of prompts that need intervention with its
distribution on held-out prompts of that kind (eps 0.05). `v = C' alpha + U_res beta(h)`: prototypes by K-means, K by
the Calinski-Harabasz index, a router and a residual of rank 10, trained on the pairs' differences.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from finesteer_local import paths
from finesteer_local.errors import ProfileError
from finesteer_local.evaluation.baselines.vectors import Candidate
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.material import SINGLE, Material
from finesteer_local.profile import Profile

SOURCE = "arXiv 2604.15488"
SCOPES = ("turn", "prompt")


def candidates(material: Material, folder: Path) -> list[Candidate]:
    """One layer, and which tokens are steered. What is trained is kept in `folder`."""

    def at(profile: Profile, scope: str, strength: float) -> ProfileSteering:
        return ProfileSteering((replace(profile, scope=scope, strength=strength),))

    return [
        Candidate({"layers": [layer], "scope": scope}, partial(at, _profile(material, layer, folder), scope))
        for layer in material.layers(SINGLE)
        for scope in SCOPES
    ]


def _profile(material: Material, layer: int, folder: Path) -> Profile:
    # Training is seconds, but not repeatable to the last bit everywhere, and answers are kept by what gave them.
    path = folder / f"finesteer-{material.key[:12]}-{layer}.gguf"
    try:
        return Profile.load(path)
    except ProfileError:
        profile = _train(material, layer)
        paths.ensure_dir(folder)
        profile.save(path)
        return profile


def _train(material: Material, layer: int) -> Profile:
    from finesteer_local.training.experts import train_experts
    from finesteer_local.training.gates import fit_subspace_gate

    positive, contrast = material.positive, material.contrast
    inside = positive.last(layer)
    gate, _ = fit_subspace_gate(
        inside[list(positive.learn)], inside[list(positive.held)], contrast.last(layer)[list(contrast.held)]
    )
    experts, _ = train_experts(
        material.states[layer],
        material.deltas[layer],
        [pair.prompt.kind for pair in material.pairs],
        material.learn,
        material.held,
        seed=material.seed,
    )
    return Profile("finesteer", material.model, gate, layer, {layer: experts})
