"""Which layers of a model may be steered."""

from __future__ import annotations

from finesteer_local.errors import DataError

LAYERS = {"refusal": (0.43, 0.48), "margin": (0.27, 0.37, 0.43, 0.48)}
"""Candidates, as shares of the depth, by the recipe's judge: lower ones hardly steer refusals but do steer facts
(docs/experiments.md), above 0.55 the text falls apart (DESIGN.md)."""
LEARNT_LAYERS = {"refusal": (0.43, 0.57, 0.7), "margin": (0.27,)}
"""Layers that are learnt through the model, together. The gate reads the lowest, so that one pass does."""


def candidate_layers(n_layer: int, judge: str, *, learns: bool, layer: int | None = None) -> list[int]:
    """Layers of a model of `n_layer` that may be steered, ascending; the one that was asked for, where one was.

    Raises:
        DataError: `layer` cannot be steered.
    """
    top = n_layer - 2  # the last layer's output holds only the tokens that have logits
    if layer is not None:
        if not 1 <= layer <= top:
            raise DataError(f"layer {layer} cannot be steered; this model allows 1 to {top}")
        return [layer]
    # Learnt through the model, all that is above the lowest can still be brought about, and one layer takes minutes.
    shares = LEARNT_LAYERS[judge] if learns else LAYERS[judge]
    return sorted({min(max(round(share * n_layer), 1), top) for share in shares})
