"""Our profile with one part taken out or made simpler: the paper's ablations (arXiv 2604.15488)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from finesteer_local.converters.controlvector import expert_shares
from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.steering import AlwaysGate, ContrastiveGate, Experts, SubspaceGate

_LOWEST = -1e9  # the least that a profile may have


def without_gate(profile: Profile) -> Profile:
    """Open for every prompt; a gate beside which kinds are told stays, with a threshold that every score reaches."""
    if profile.kinds is not None and isinstance(profile.gate, ContrastiveGate):
        return replace(profile, gate=replace(profile.gate, low=_LOWEST, high=_LOWEST))
    return replace(profile, gate=AlwaysGate())


def without_experts(profile: Profile) -> Profile:
    """One global vector, the mean over the training pairs, behind the same gate."""
    means = {}
    for layer, experts in profile.experts.items():
        shares = expert_shares(profile, layer)
        if shares is None:
            shares = np.full(len(experts.prototypes), 1 / len(experts.prototypes), np.float32)
        means[layer] = Experts.fixed(shares @ experts.prototypes)
    return replace(profile, experts=means)


def without_residual(profile: Profile) -> Profile:
    """`v = C' alpha`."""

    def cut(experts: Experts) -> Experts:
        return replace(
            experts,
            residual_basis=experts.residual_basis[:, :0],
            hidden_weight=experts.hidden_weight[:, :0],
            hidden_bias=experts.hidden_bias[:0],
            output_weight=experts.output_weight[:0, :0],
            output_bias=experts.output_bias[:0],
        )

    return replace(profile, experts={layer: cut(experts) for layer, experts in profile.experts.items()})


def with_hard_gate(profile: Profile) -> Profile:
    """`g` is 1 from the threshold on, and 0 below it.

    Raises:
        DataError: the gate is of a kind that cannot be made hard.
    """
    gate = profile.gate
    if isinstance(gate, ContrastiveGate):
        return replace(profile, gate=replace(gate, high=gate.low))
    if isinstance(gate, SubspaceGate):
        return replace(profile, gate=replace(gate, floor=1.0))
    if isinstance(gate, AlwaysGate):
        return profile
    raise DataError(f"a gate of kind {gate.kind!r} cannot be made hard; leave out hard-gate")


ABLATIONS: Mapping[str, Callable[[Profile], Profile]] = {
    "no-gate": without_gate,
    "no-experts": without_experts,
    "no-residual": without_residual,
    "hard-gate": with_hard_gate,
}
