"""How long training will take, from a short measurement of this machine."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from finesteer_local.errors import ModelError
from finesteer_local.runtime.expand import open_fast
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training import DEFAULT_MINUTES
from finesteer_local.training.effort import Pace, effort_of, fitting, least_seconds
from finesteer_local.training.layers import candidate_layers
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.run import answer_faster, watches
from finesteer_local.training.settings import TrainingSettings
from finesteer_local.training.weights import learns_by_itself, weights_of


def estimate_seconds(
    model: str | Path,
    recipe: str = "safety",
    *,
    quality: str | None = None,
    minutes: float = DEFAULT_MINUTES,
    **options: Any,
) -> float:
    """Seconds that training `recipe` will take here: a few prompts are read and answered, and scaled up.

    Args:
        quality, minutes: as for training: how much is done, or how long it may take.
        options: those of `runtime.open_model`.

    Raises:
        ModelError, SteeringError: the model cannot be loaded or read.
    """
    data = load_recipe(recipe)
    if n_threads := options.get("n_threads"):
        torch.set_num_threads(n_threads)
    with open_fast(model, **options) as llama, tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        weights = _weights(llama, data.judge)
        learns = weights is not None
        layer = candidate_layers(llama.n_layer, data.judge, learns=learns)[0]
        model_data, watching = ModelData(llama, data, Path(folder)), watches(data, TrainingSettings())
        answer_faster(model_data, data, weights)
        pace = Pace.measured(model_data, data, layer, weights, watches=watching)
        effort = (
            effort_of(quality, llama.n_parameters)
            if quality
            else fitting(minutes, pace, llama.n_parameters, learns=learns, judge=data.judge)
        )
    n_prompts = len(data.positive) + len(data.contrast)
    whole = pace.whole(effort, min(n_prompts, effort.prompts or n_prompts), learns=learns, judge=data.judge)
    # The gate's share is cut to the time that is left, but not below what it needs.
    least = least_seconds(effort, pace, n_prompts, learns=learns, judge=data.judge)
    return whole if quality else max(min(whole, minutes * 60), least)


def _weights(llama: TrainableModel, judge: str) -> Any:
    """The model for PyTorch where training will learn through it, or None."""
    with suppress(ModelError):
        return weights_of(llama) if learns_by_itself(llama, judge) else None
    return None
