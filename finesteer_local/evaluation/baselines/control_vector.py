"""`control-vector`: the mean difference, always on; what users of llama.cpp have today.

    v = mean_i(chosen_i - rejected_i),    H <- H + strength * v

for every token of every prompt (Difference in means, as in arXiv 2308.10248 and arXiv 2312.06681; llama.cpp's
cvector-generator, `--method mean`).
"""

from __future__ import annotations

from functools import partial

from finesteer_local.evaluation.baselines.vectors import Candidate, always
from finesteer_local.evaluation.material import BAND, SINGLE, UPPER_BAND, Material

SOURCE = "llama.cpp, cvector-generator --method mean"


def candidates(material: Material) -> list[Candidate]:
    """One layer, and ranges of layers."""
    ranges = [[layer] for layer in material.layers(SINGLE)] + [material.layers(BAND), material.layers(UPPER_BAND)]
    return [
        Candidate(
            {"layers": layers},
            partial(
                always,
                "control-vector",
                material.model,
                {layer: material.learnt_deltas(layer).mean(axis=0) for layer in layers},
            ),
        )
        for layers in ranges
    ]
