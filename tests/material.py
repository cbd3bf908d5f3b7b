"""Small training data for the methods that an evaluation trains, and states made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finesteer_local.evaluation.material import BAND, CONDITION, SINGLE, UPPER_BAND, Material, PromptStates, layers_at
from finesteer_local.identity import read_model_identity
from finesteer_local.training.data import Pair, Prompt, TrainingData

N_PAIRS, N_CONTRAST = 48, 60


def prompt(text: str, kind: str = "", family: str = "") -> Prompt:
    return Prompt([{"role": "user", "content": text}], kind, family)


def small_data(**changes: object) -> TrainingData:
    pairs = [
        Pair(prompt(f"open {i} now", kind=f"kind {i % 2}"), f"I cannot {i % 3}", f"Sure {i}") for i in range(N_PAIRS)
    ]
    contrast = [prompt(f"hello {i} there") for i in range(N_CONTRAST)]
    return TrainingData("small", pairs, contrast, **{"judge": "refusal", **changes})  # type: ignore[arg-type]


def made_up(model: Path, seed: int = 0) -> Material:
    """States in which prompts that need intervention are shifted along axis 0, and answers along axis 1."""
    rng, identity, data = np.random.default_rng(seed), read_model_identity(model), small_data()
    n_embd = identity.n_embd
    layers = layers_at(identity.n_layer, (*SINGLE, *BAND, *UPPER_BAND))
    conditions = layers_at(identity.n_layer, CONDITION)

    def states(n: int, shift: float) -> np.ndarray:
        x = rng.standard_normal((n, 2, len(conditions), n_embd))
        x[..., 0] += shift
        return x.astype(np.float16)

    deltas = {layer: rng.standard_normal((N_PAIRS, n_embd)).astype(np.float32) for layer in layers}
    for delta in deltas.values():
        delta[:, 1] += 8
    return Material(
        model=identity,
        data=data,
        pairs=data.pairs,
        originals=data.pairs,
        deltas=deltas,
        states={layer: rng.standard_normal((N_PAIRS, n_embd)).astype(np.float32) for layer in layers},
        learn=list(range(0, N_PAIRS - 12)),
        held=list(range(N_PAIRS - 12, N_PAIRS)),
        positive=_split([pair.prompt for pair in data.pairs], states(N_PAIRS, 12.0), conditions),
        contrast=_split(list(data.contrast), states(N_CONTRAST, 0.0), conditions),
        seed=0,
        key="0" * 64,
    )


def _split(prompts: list[Prompt], states: np.ndarray, layers: list[int]) -> PromptStates:
    held = [i for i in range(len(prompts)) if i % 4 == 0]
    return PromptStates(prompts, states, layers, [i for i in range(len(prompts)) if i % 4], held)
