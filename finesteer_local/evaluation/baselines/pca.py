"""`pca`: a control vector by principal components; the way of repeng and of llama.cpp's cvector-generator.

    v = sign * first principal component of (chosen_i - rejected_i),    H <- H + strength * v

for every token of every prompt (representation engineering, arXiv 2310.01405; repeng's `pca_diff` centres the
differences, its `pca_center` and llama.cpp do not). The sign is the one by which most differences point along v. Both
programs leave v at length 1; here it is as long as the differences reach along it, which only rescales the strength.
"""

from __future__ import annotations

from functools import partial

from finesteer_local.evaluation.baselines.vectors import Candidate, always, principal_direction
from finesteer_local.evaluation.material import BAND, SINGLE, UPPER_BAND, Material

SOURCE = "repeng; llama.cpp, cvector-generator --method pca"


def candidates(material: Material) -> list[Candidate]:
    """One layer, and ranges of layers; the ranges by both ways."""
    single = [[layer] for layer in material.layers(SINGLE)]
    ranges = [material.layers(BAND), material.layers(UPPER_BAND)]
    settings = [(layers, False) for layers in single + ranges] + [(layers, True) for layers in ranges]
    return [
        Candidate(
            {"layers": layers, "centred": centred},
            partial(
                always,
                "pca",
                material.model,
                {layer: principal_direction(material.learnt_deltas(layer), centred=centred) for layer in layers},
            ),
        )
        for layers, centred in settings
    ]
