"""`alphasteer`: refusal by a null-space projected linear map (arXiv 2506.07022).

    h <- h + strength * h M,    M = P D,    P = Q Q'

`Q` spans the directions in which ordinary prompts' states have the least energy: eigenvectors of `H_b' H_b` with the
smallest eigenvalues, a given share of them. `D` is the ridge regression that takes the projected states of prompts
that need intervention to the refusal direction `r`:

    D = argmin |H_m P D - 1 r'|^2 + ridge |P D|^2

All of them have the same target, so `M = w r'` with `w = Q (Z'Z + ridge I)^-1 Z'1`, `Z = H_m Q`. The authors' code
reads `h` at the prompt's last token and moves all the prompt's tokens by its image; that every token moves by its own
is the other candidate. Their settings: 0.6 of the directions (0.3 to 0.6), ridge 10, ten of 32 layers between 8 and 19.
How much a ridge of 10 is depends on the model's scale; the candidate beside it is 10 times the states' mean square.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from finesteer_local.evaluation.baselines.vectors import Candidate
from finesteer_local.evaluation.interventions import MapSteering
from finesteer_local.evaluation.material import Material

SOURCE = "arXiv 2506.07022"
RIDGE = 10.0
_BAND = (0.30, 0.37, 0.40, 0.44, 0.48, 0.55)
Array = NDArray[np.float32]


def null_space(ordinary: Array, share: float) -> NDArray[np.float64]:
    """Q: the `share` of directions in which states (n, n_embd) have the least energy, (n_embd, m)."""
    states = ordinary.astype(np.float64)
    _, vectors = np.linalg.eigh(states.T @ states)  # eigenvalues ascend
    return np.asarray(vectors[:, : max(int(share * len(vectors)), 1)])


def regression(harmful: Array, basis: NDArray[np.float64], ridge: float) -> Array:
    """w, (n_embd,): `h'w` is near 1 for the states (n, n_embd) and 0 outside of the basis."""
    z = harmful.astype(np.float64) @ basis  # (n, m)
    gram = z.T @ z + ridge * np.eye(basis.shape[1])
    return np.asarray(basis @ np.linalg.solve(gram, z.sum(axis=0)), np.float32)


def candidates(material: Material) -> list[Candidate]:
    """Both ways of steering; several layers and one; more and less of a null space; a stronger ridge."""
    band, middle = material.layers(_BAND), material.layers((0.44,))

    def maps(layers: list[int], share: float, scaled: bool) -> dict[int, tuple[Array, Array]]:
        found = {}
        for layer in layers:
            inside = material.positive.last(layer)[list(material.positive.learn)]
            basis = null_space(material.contrast.last(layer)[list(material.contrast.learn)], share)
            ridge = RIDGE * (float((inside**2).mean()) if scaled else 1.0)
            direction = material.learnt_deltas(layer).mean(axis=0) / len(layers)
            found[layer] = regression(inside, basis, ridge), np.asarray(direction, np.float32)
        return found

    settings = [
        (layers, share, False, every_token)
        for layers in (band, middle)
        for share in (0.6, 0.3)
        for every_token in (False, True)
    ] + [(band, 0.6, True, False), (band, 0.9, True, False)]
    return [
        Candidate(
            {"layers": layers, "null_space": share, "ridge_in_units_of_h": scaled, "every_token": every_token},
            partial(MapSteering, maps(layers, share, scaled), every_token=every_token),
        )
        for layers, share, scaled, every_token in settings
    ]
