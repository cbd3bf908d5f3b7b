"""A gate for experts that come without one: trained on prompts alone."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError
from finesteer_local.runtime.expand import open_fast
from finesteer_local.steering import Gate
from finesteer_local.training.data import Prompt, read_prompts, split
from finesteer_local.training.effort import EFFORTS
from finesteer_local.training.gates import GateFit, fit_contrastive_gate, fit_subspace_gate
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.progress import Progress, quiet
from finesteer_local.training.recipes import load_recipe

KINDS = ("contrastive", "scs")
MIN_PROMPTS = 16


def train_gate(
    model: str | Path,
    layer: int,
    positive: Path,
    contrast: Path | None = None,
    *,
    kind: str = "contrastive",
    seed: int = 0,
    n_threads: int | None = None,
    progress: Progress = quiet,
    **llama_options: Any,
) -> tuple[Gate, dict[str, float]]:
    """Train a gate that reads `layer` of the GGUF model at `model`.

    Args:
        positive: JSONL of prompts that need intervention.
        contrast: JSONL of prompts that do not; None takes the `safety` recipe's ordinary and borderline ones.
        kind: one of `KINDS`.

    Returns:
        The gate, and how well it tells held-out prompts apart (`auroc`, `recall`, `openings`).

    Raises:
        DataError: the prompts cannot be used, or are too few.
        ModelError, SteeringError: the model cannot be opened or read.
    """
    wanted = _enough(read_prompts(positive), str(positive))
    if contrast:
        others = _enough(read_prompts(contrast), str(contrast))
    else:
        others = list(load_recipe("safety", seed).part(EFFORTS["standard"].prompts).contrast)
    with open_fast(model, n_threads=n_threads, **llama_options) as llama:
        if layer >= llama.n_layer - 1:
            raise DataError(f"a gate cannot read layer {layer}, the model's last; steer a lower one too, with --layers")
        llama.check_steerable([layer])
        with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
            model_data = ModelData(llama, None, Path(folder), progress)
            inside, outside = model_data.turns([*wanted, *others], layer).parted(len(wanted))
            if kind == "scs":
                learn, held = split(len(wanted), [prompt.kind for prompt in wanted], seed)
                gate, fit = fit_subspace_gate(inside.last[learn], inside.last[held], outside.last)
                return gate, _figures(fit)
            probe, fit = fit_contrastive_gate(
                inside, outside, seed=seed, progress=lambda done, total: progress("training the gate", done, total)
            )
            return probe, _figures(fit)


def _figures(fit: GateFit) -> dict[str, float]:
    return {"auroc": fit.auroc, "recall": fit.recall, "openings": fit.openings}


def _enough(prompts: Sequence[Prompt], where: str) -> list[Prompt]:
    if len(prompts) < MIN_PROMPTS:
        raise DataError(f"{where}: {len(prompts)} prompts are too few to train a gate on; give at least {MIN_PROMPTS}")
    return list(prompts)
