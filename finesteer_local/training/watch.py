"""An answers' gate for a profile that has none, or another one: the rest of the profile stays as it is."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.runtime.expand import open_fast
from finesteer_local.steering import AnswerGate
from finesteer_local.training.answer_gate import LEAST, AnswerGateFit, learn_answer_gate
from finesteer_local.training.assemble import rounded
from finesteer_local.training.data import TrainingData
from finesteer_local.training.effort import EFFORTS, Deadline
from finesteer_local.training.model_data import ModelData, run_folder
from finesteer_local.training.progress import Progress, quiet
from finesteer_local.training.recipes import load_recipe

ANSWERS = EFFORTS["full"].watched


def watch_profile(
    model: str | Path,
    profile: Profile,
    *,
    recipe: str | None = None,
    n_answers: int = ANSWERS,
    n_threads: int | None = None,
    progress: Progress = quiet,
    **llama_options: Any,
) -> tuple[Profile, AnswerGateFit]:
    """The profile with a gate that reads answers, learnt from `n_answers` of the model's own.

    An interrupted run goes on where it stopped.

    Args:
        model: the GGUF file that the profile is for.
        recipe: whose prompts the model answers; None: that by which the profile was trained.

    Raises:
        DataError: the recipe has no harmless prompts, is not one of refusals, or the model complies too rarely.
        ModelError, ProfileMismatchError, SteeringError: the model cannot be opened, read, or is another one.
    """
    data = recipe_of(profile, recipe)
    with open_fast(model, n_threads=n_threads, **llama_options) as llama:
        llama.set_profiles([profile])  # raises where it is for another model
        llama.set_profiles([])
        folder = run_folder(llama, data, {"watch": profile.gate_layer})
        model_data = ModelData(llama, data, folder, progress)
        found = learn_answer_gate(model_data, data, profile.gate_layer, n_answers, deadline=Deadline(None))
    if found is None:
        raise DataError(
            f"fewer than {LEAST} of {n_answers} answers do what should not be done, or leave it; ask for more"
        )
    gate, fit = found
    return with_answer_gate(profile, gate, fit), fit


def with_answer_gate(profile: Profile, gate: AnswerGate, fit: AnswerGateFit) -> Profile:
    """The profile with this gate, and with what is known of it among its figures."""
    figures = {**profile.training.get("figures", {}), "answer_gate": rounded(asdict(fit))}
    return replace(profile, answer_gate=gate, training={**profile.training, "figures": figures})


def recipe_of(profile: Profile, recipe: str | None) -> TrainingData:
    """The recipe whose prompts are answered; raises `DataError` for one that cannot serve, or where none is known."""
    name = recipe or profile.training.get("recipe")
    if not isinstance(name, str) or not name:
        raise DataError(f"profile {profile.name!r} does not say by which recipe it was trained; name one with --recipe")
    data = load_recipe(name)
    if data.judge != "refusal" or not data.contrast:
        raise DataError(f"recipe {name!r} is not one of refusals: nothing in an answer would show that it is needed")
    return data
