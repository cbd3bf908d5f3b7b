"""Parts of a profile, learnt for one that has none or learnt anew: the rest of the profile stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.runtime.expand import open_fast
from finesteer_local.steering import AnswerGate, ContrastiveGate
from finesteer_local.training.answer_gate import LEAST, AnswerGateFit, learn_answer_gate
from finesteer_local.training.assemble import rounded
from finesteer_local.training.data import TrainingData
from finesteer_local.training.effort import EFFORTS, NO_DEADLINE
from finesteer_local.training.gates import log_odds
from finesteer_local.training.kinds import LEAST as FEWEST
from finesteer_local.training.kinds import KindsFit, fit_kinds
from finesteer_local.training.known import gate_scores
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
        DataError: the recipe has no harmless prompts, is not one of refusals, or the model complies too rarely; or its
            answers do not show what was asked for, so that the gate would be of no use.
        ModelError, ProfileMismatchError, SteeringError: the model cannot be opened, read, or is another one.
    """
    data = recipe_of(profile, recipe)
    if data.judge != "refusal" or not data.contrast:
        raise DataError(
            f"recipe {data.name!r} is not one of refusals: nothing in an answer would show that it is needed"
        )
    with _opened(model, profile, data, "watch", progress, n_threads=n_threads, **llama_options) as model_data:
        found = learn_answer_gate(model_data, data, profile.gate_layer, n_answers, deadline=NO_DEADLINE)
    if found is None:
        raise DataError(
            f"fewer than {LEAST} of {n_answers} answers do what should not be done, or leave it; ask for more"
        )
    gate, fit = found
    if not fit.useful:
        raise DataError(
            "this model's answers do not show what was asked for: a gate that leaves ordinary ones alone would open on "
            f"{fit.recall:.1%} of {fit.complied:,} that it should open on; the profile stays as it is (docs/watch.md)"
        )
    return with_answer_gate(profile, gate, fit), fit


def name_kinds(
    model: str | Path,
    profile: Profile,
    *,
    recipe: str | None = None,
    n_threads: int | None = None,
    progress: Progress = quiet,
    **llama_options: Any,
) -> tuple[Profile, KindsFit]:
    """The profile with the kinds of a recipe, learnt beside its gate from the recipe's prompts.

    Args:
        model: the GGUF file that the profile is for.
        recipe: which names the kinds; None: that by which the profile was trained.

    Raises:
        DataError: the profile's gate cannot tell kinds, the recipe has none, or too few prompts.
        ModelError, ProfileMismatchError, SteeringError: the model cannot be opened, read, or is another one.
    """
    data = recipe_of(profile, recipe)
    if not isinstance(profile.gate, ContrastiveGate):
        raise DataError(
            f"a gate of the kind '{profile.gate.kind}' cannot tell kinds; train the profile with --gate contrastive"
        )
    if not data.kinds:
        raise DataError(f"recipe {data.name!r} names no kinds (docs/recipes.md says how it can)")
    with _opened(model, profile, data, "kinds", progress, n_threads=n_threads, **llama_options) as model_data:
        return with_kinds(profile, model_data, data)


@contextmanager
def _opened(
    model: str | Path, profile: Profile, data: TrainingData, part: str, progress: Progress, **llama_options: Any
) -> Iterator[ModelData]:
    """What `part` is learnt from, in a folder where an interrupted run goes on.

    Raises:
        ModelError, ProfileMismatchError, SteeringError: the model cannot be opened, or is another one.
    """
    with open_fast(model, **llama_options) as llama:
        llama.set_profiles([profile])  # raises where it is for another model
        llama.set_profiles([])
        yield ModelData(llama, data, run_folder(llama, data, {part: profile.gate_layer}), progress)


def with_kinds(profile: Profile, model_data: ModelData, data: TrainingData) -> tuple[Profile, KindsFit]:
    """The profile with the kinds of `data`, and with how well they are told among its figures.

    How likely a request needs intervention is told as the profile's own kinds tell it. Where it has none, the gate's
    scores tell on prompts that may have taught it, and so a little too surely.

    Raises:
        DataError: too few prompts have a kind.
    """
    gate, prompts = profile.gate, data.positive
    assert isinstance(gate, ContrastiveGate)
    if profile.kinds is not None:
        turns = model_data.turns(prompts, profile.gate_layer)
        slope, offset = profile.kinds.slope, profile.kinds.offset
    else:
        everything = model_data.turns([*prompts, *data.contrast], profile.gate_layer)
        scores = gate_scores(gate, everything).astype(np.float32)
        slope, offset = log_odds(scores, (np.arange(len(everything)) < len(prompts)).astype(float))
        turns = everything.parted(len(prompts))[0]
    found = fit_kinds(
        gate,
        turns,
        prompts,
        data.kinds,
        slope=slope,
        offset=offset,
        progress=lambda done, total: model_data.progress("training the kinds", done, total),
    )
    if found is None:
        raise DataError(f"too few prompts have a kind: two kinds with {FEWEST} prompts each are the least")
    kinds, fit = found
    return replace(profile, kinds=kinds, training=_with_figures(profile, "kinds", fit)), fit


def with_answer_gate(profile: Profile, gate: AnswerGate, fit: AnswerGateFit) -> Profile:
    """The profile with this gate, and with what is known of it among its figures."""
    return replace(profile, answer_gate=gate, training=_with_figures(profile, "answer_gate", fit))


def _with_figures(profile: Profile, part: str, fit: KindsFit | AnswerGateFit) -> dict[str, Any]:
    """The profile's training, with what is known of `part` among its figures."""
    figures = {**profile.training.get("figures", {}), part: rounded(asdict(fit))}
    return {**profile.training, "figures": figures}


def recipe_of(profile: Profile, recipe: str | None) -> TrainingData:
    """The recipe of this name, or that by which the profile was trained; raises `DataError` where none is known."""
    name = recipe or profile.training.get("recipe")
    if not isinstance(name, str) or not name:
        raise DataError(f"profile {profile.name!r} does not say by which recipe it was trained; name one with --recipe")
    return load_recipe(name)
