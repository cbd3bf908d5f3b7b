"""One evaluation from beginning to end: methods made ready, suites measured, figures counted; it can be interrupted."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata

from finesteer_local import __version__
from finesteer_local.evaluation.endpoint import EndpointJudge
from finesteer_local.evaluation.interventions import ProfileSteering
from finesteer_local.evaluation.journal import Journal, run_folder
from finesteer_local.evaluation.measure import (
    MAX_TOKENS,
    SEEDS,
    TEMPERATURE,
    Judge,
    PhraseJudge,
    WholeJudge,
    check_suites,
    measure,
)
from finesteer_local.evaluation.methods import BASELINES, build_methods, expand
from finesteer_local.evaluation.results import Results, Setting
from finesteer_local.evaluation.suites import Suite
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.training.data import TrainingData
from finesteer_local.training.progress import Progress, quiet
from finesteer_local.training.recipes import load_recipe

WHOLE, PHRASES = "whole", "phrases"


@dataclass(frozen=True)
class Plan:
    """What an evaluation does.

    Attributes:
        methods: names and groups, see `methods.NAMES` and `methods.GROUPS`.
        max_tokens: longest answer; maths gets more.
        temperature, seeds: of the answers beside the greedy ones, one a prompt and seed.
        sweep: try every method at several strengths, too.
        recipe, seed: what the other methods are trained on; None is what the first profile was trained on.
        judge: `whole`, `phrases`, or the URL of an OpenAI-compatible endpoint, to which `judge_model` and `judge_key`
            belong.
        fresh: forget what earlier runs have computed.
        command: how the run was started, for the report.
    """

    methods: Sequence[str] = ("none", "ours")
    max_tokens: int = MAX_TOKENS
    temperature: float = TEMPERATURE
    seeds: Sequence[int] = SEEDS
    sweep: bool = False
    recipe: str | None = None
    seed: int | None = None
    judge: str = WHOLE
    judge_model: str = ""
    judge_key: str | None = None
    fresh: bool = False
    command: str = ""


def evaluate(
    llama: SteeredLlama,
    profiles: Sequence[Profile],
    suites: Sequence[Suite],
    plan: Plan,
    *,
    model: str,
    progress: Progress = quiet,
) -> Results:
    """Run the suites through the methods. What is computed is kept, so that the same call goes on after a stop.

    Args:
        profiles: what `ours` is; their own strengths and scopes count.
        model: the model's name, for people.

    Raises:
        DataError: a suite or the training data cannot be used, or a method needs a profile or a recipe.
        UnknownNameError: there is no such recipe.
        SteeringError: a method cannot be applied to this model.
        JudgeError: the endpoint does not answer, or not as asked.
        MissingExtraError: a method needs the `train` extra.
    """
    names = expand(plan.methods)
    data = _training_data(profiles, plan)
    llama.set_profiles([])
    check_suites(llama, suites)
    folder = run_folder(llama)
    journal = Journal(folder / "journal.jsonl", fresh=plan.fresh)
    try:
        methods = build_methods(
            llama, names, profiles, journal, folder, load=data.load, seed=data.seed, progress=progress
        )
        measured = measure(
            llama,
            methods,
            suites,
            journal,
            max_tokens=plan.max_tokens,
            temperature=plan.temperature,
            seeds=plan.seeds,
            judge=_judge(plan, journal),
            sweep=plan.sweep,
            progress=progress,
        )
    finally:
        journal.close()
    setting = Setting(
        model=model,
        fingerprint=llama.identity.fingerprint,
        profiles=tuple(f"{p.name} ({ProfileSteering((p,)).summary})" for p in profiles),
        versions={
            "finesteer-local": __version__,
            "llama-cpp-python": metadata.version("llama-cpp-python"),
            "Python": platform.python_version(),
        },
        command=plan.command,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        max_tokens=plan.max_tokens,
        temperature=plan.temperature if plan.seeds else 0.0,
        seeds=tuple(plan.seeds),
        remarks=tuple(data.remarks(profiles) if {*names} & {*BASELINES} else ()),
    )
    return Results.of(measured, setting)


@dataclass(frozen=True)
class _Data:
    recipe: str | None
    seed: int

    @property
    def load(self) -> partial[TrainingData] | None:
        return partial(load_recipe, self.recipe, self.seed) if self.recipe else None

    def remarks(self, profiles: Sequence[Profile]) -> list[str]:
        """What a reader must know about the other methods' training."""
        trained_on = profiles[0].training.get("data_hash") if profiles else None
        if self.load is None or trained_on in (None, self.load().hash):
            return []
        return [
            f"Profile {profiles[0].name} was trained on other data than the recipe {self.recipe} holds now; "
            "the other methods are trained on the recipe as it is."
        ]


def _training_data(profiles: Sequence[Profile], plan: Plan) -> _Data:
    provenance = profiles[0].training if profiles else {}
    recipe = plan.recipe or provenance.get("recipe")
    seed = plan.seed if plan.seed is not None else provenance.get("seed")
    return _Data(recipe if isinstance(recipe, str) and recipe else None, seed if isinstance(seed, int) else 0)


def _judge(plan: Plan, journal: Journal) -> Judge:
    if plan.judge == WHOLE:
        return WholeJudge()
    if plan.judge == PHRASES:
        return PhraseJudge()
    return EndpointJudge(plan.judge, plan.judge_model, journal, key=plan.judge_key)
