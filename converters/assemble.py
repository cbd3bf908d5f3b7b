"""Makes a profile for one model of what an importer read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finesteer_local.errors import ProfileError
from finesteer_local.identity import ModelIdentity
from finesteer_local.profile import Profile
from finesteer_local.steering import AlwaysGate, Experts, Gate

from .foreign import Foreign, refuse


def choose_layers(path: Path, foreign: Foreign, model: ModelIdentity, wanted: Collection[int] | None) -> Foreign:
    """`foreign` with only the layers `wanted` (None: all), if this model can be steered with it.

    Raises:
        ProfileError: a vector is not as wide as the model, or a layer is missing or cannot be steered.
    """
    missing = sorted(set(wanted or ()) - foreign.experts.keys())
    if missing:
        held = ", ".join(map(str, foreign.experts))
        raise refuse(path, f"it has no vector for layer {missing[0]}; it has {held} (llama.cpp's counting)")
    experts = {layer: e for layer, e in foreign.experts.items() if wanted is None or layer in wanted}
    for layer, e in experts.items():
        n_embd = e.prototypes.shape[1]
        if n_embd != model.n_embd:
            raise refuse(path, f"its vectors are {n_embd} wide, the model {model.name} is {model.n_embd} wide")
        why = foreign.cannot.get(layer)
        if why is None and layer == 0:
            why = "llama.cpp steers from layer 1 on"
        if why is None and not 0 < layer < model.n_layer:
            why = f"the model has the layers 1 to {model.n_layer - 1}"
        if why:
            raise refuse(path, f"layer {layer} cannot be steered ({why}); leave it out with --layers FIRST-LAST")
    return replace(foreign, experts=experts)


def gate_layer(foreign: Foreign) -> int:
    """The layer that a gate for `foreign` reads: the router's, or the lowest steered one."""
    return min(foreign.experts) if foreign.reads is None else foreign.reads


def to_profile(
    foreign: Foreign,
    model: ModelIdentity,
    *,
    name: str,
    source: Mapping[str, Any],
    gate: Gate | None = None,
    gate_at: int | None = None,
    strength: float | None = None,
    scope: str = "prompt",
) -> Profile:
    """The profile that steers `model` with `foreign`.

    Args:
        source: where it comes from, for the profile's provenance.
        gate: when to steer; None is always.
        gate_at: the layer the gate reads; None takes the router's, or the lowest steered one.
        strength: instead of the format's own; below 0 the vectors are turned round.

    Raises:
        ProfileError: the parts do not make a profile.
    """
    strength = foreign.strength if strength is None else strength
    experts = dict(foreign.experts)
    if strength < 0:
        experts = {layer: _turned(e) for layer, e in experts.items()}
    layer = gate_layer(foreign) if gate_at is None else gate_at
    lowest = min(experts)
    if layer > lowest:
        raise ProfileError(
            f"the gate reads layer {layer}, above the steered layer {lowest}, which has passed by then; "
            f"steer only from layer {layer} on, with --layers"
        )
    if foreign.reads is not None and layer != foreign.reads:
        raise ProfileError(f"the router reads layer {foreign.reads}, so the gate cannot read layer {layer}")
    return Profile(
        name=name,
        model=model,
        gate=gate or AlwaysGate(),
        gate_layer=layer,
        experts=experts,
        strength=abs(strength),
        scope=scope,
        description=f"Imported: {foreign.format}, {source.get('file', '')}".removesuffix(", "),
        training={"imported": {"format": foreign.format, **source}},
    )


def _turned(experts: Experts) -> Experts:
    return replace(experts, prototypes=-experts.prototypes, residual_basis=-experts.residual_basis)
