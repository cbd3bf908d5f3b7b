"""Puts the profile together: what was learnt, the chosen settings, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from finesteer_local.profile import Profile
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.steering import AlwaysGate, AnswerGate, Experts, Gate, Kinds
from finesteer_local.training.answer_gate import AnswerGateFit
from finesteer_local.training.gate_data import GateData
from finesteer_local.training.gates import GateFit
from finesteer_local.training.kinds import KindsFit
from finesteer_local.training.learn import Learnt
from finesteer_local.training.progress import Stopwatch
from finesteer_local.training.run import Run, watches
from finesteer_local.training.search import Trial, as_rows


def blank(name: str, llama: TrainableModel, layer: int) -> Profile:
    """A profile that is open for everything, and steers nothing: a trial puts in the experts."""
    return Profile(
        name=name,
        model=llama.identity,
        gate=AlwaysGate(),
        gate_layer=layer,
        experts={layer: Experts.fixed(np.zeros(llama.n_embd(), np.float32))},
    )


def blank_profile(run: Run) -> Profile:
    """The run's profile before anything was chosen."""
    made = blank(run.data.name, run.llama, run.layers[0])
    return replace(made, description=run.data.description, license=run.data.license)


def assemble(
    run: Run,
    learnt: Learnt,
    chosen: Trial,
    trials: Sequence[Trial],
    gate: Gate,
    gate_fit: GateFit | None,
    read: GateData | None,
    told: tuple[Kinds, KindsFit] | None,
    watched: tuple[AnswerGate, AnswerGateFit] | None,
    stopwatch: Stopwatch,
) -> Profile:
    """The finished profile: what was learnt at the chosen layers, with the chosen settings or those asked for.

    Args:
        read: from which the gate was learnt.
        told: the kinds, and how well they are told.
        watched: the gate that reads the answers, and how well it tells them apart; left out where it is of no use.
    """
    settings = run.settings
    kinds, kinds_fit = told or (None, None)
    answer_gate, answer_fit = watched or (None, None)
    if answer_fit is not None and not answer_fit.useful:
        answer_gate = None
    return replace(
        blank_profile(run),
        gate=gate,
        gate_layer=chosen.layers[0],
        kinds=kinds,
        answer_gate=answer_gate,
        experts={layer: _told(learnt.experts[layer], kinds) for layer in chosen.layers},
        strength=settings.strength if settings.strength is not None else chosen.strength,
        scope=settings.scope or chosen.scope,
        answer_strength=chosen.answer_strength,
        length_decay=chosen.length_decay,
        training={
            **_provenance(run, stopwatch),
            "prompts_for_gate": len(read.prompts) if read else 0,
            "teachers": list(read.teachers) if read else [],
            "pairs_for_experts": learnt.n_pairs,
            "expert_shares": {str(layer): learnt.shares[layer] for layer in chosen.layers if layer in learnt.shares},
            "figures": {
                "gate": None if gate_fit is None else rounded(asdict(gate_fit)),
                **({} if kinds_fit is None else {"kinds": rounded(asdict(kinds_fit))}),
                **({} if answer_fit is None else {"answer_gate": rounded(asdict(answer_fit))}),
                "experts": rounded(learnt.figures),
                "answers": rounded(asdict(chosen)),
            },
            "trials": [rounded(row) for row in as_rows(trials)],
        },
    )


def _told(experts: Experts, kinds: Kinds | None) -> Experts:
    """The experts, or their mean where no kinds are told by which these go."""
    known = {kind.expert for kind in kinds.kinds} if kinds else set()
    return Experts.fixed(experts.mean) if experts.by_kind and not known & set(experts.labels) else experts


def _provenance(run: Run, stopwatch: Stopwatch) -> dict[str, Any]:
    """What a profile was trained with, and how long that took."""
    data, settings = run.data, run.settings
    return {
        "recipe": data.recipe,
        "data_hash": data.hash,
        "pairs": len(data.pairs),
        "contrast_prompts": len(data.contrast),
        "quality": settings.quality,
        "minutes": None if settings.quality else settings.minutes,
        "lessons": run.effort.lessons if run.learns else 0,
        "watched": run.effort.watched if watches(data, settings) else None,
        "optimised": run.learns,
        "seed": settings.seed,
        "seconds": round(stopwatch.seconds, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in stopwatch.stages.items()},
        "versions": {name: metadata.version(name) for name in ("finesteer-local", "llama-cpp-python", "torch")},
        "model_file": Path(run.llama.model_path).name,
    }


def rounded(value: Any) -> Any:
    """Figures as the file has them: rounded to four digits behind the point, lists in place of tuples."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value
