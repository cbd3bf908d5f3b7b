"""Training a profile: begin a run, learn what steers, tune how, learn the gates and the kinds, assemble the profile.

Each step is a file: `run`, `learn`, `tune`, `gates`, `kinds`, `answer_gate`, `assemble`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finesteer_local.profile import Profile
from finesteer_local.runtime.expand import open_fast
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.steering import AlwaysGate, AnswerGate, Gate
from finesteer_local.training.answer_gate import AnswerGateFit, learn_answer_gate
from finesteer_local.training.assemble import assemble, blank_profile
from finesteer_local.training.data import Prompt, TrainingData, spread
from finesteer_local.training.effort import LAST_PART, TUNING_PART, Deadline
from finesteer_local.training.gate_data import GateData, fit_gate, read_for_gate
from finesteer_local.training.gates import GateFit, fit_subspace_gate
from finesteer_local.training.kinds import train_kinds
from finesteer_local.training.learn import Learnt, learn
from finesteer_local.training.pairs import held_out
from finesteer_local.training.progress import Progress, Stopwatch, quiet
from finesteer_local.training.run import Run, begin
from finesteer_local.training.search import Trial
from finesteer_local.training.settings import TrainingSettings
from finesteer_local.training.teacher import taught
from finesteer_local.training.trials import BLOCK, FEWEST_ANSWERS, LARGE_BLOCK
from finesteer_local.training.tune import tune


def train(llama: TrainableModel, data: TrainingData, settings: TrainingSettings, progress: Progress = quiet) -> Profile:
    """Train a profile on `data` for the loaded model.

    What was read, answered and learnt is kept: an interrupted run goes on from there, and so does one that may take
    longer. With `settings.keep` an interruption during the tuning or the reading of prompts makes a profile of what is
    there by then.

    Raises:
        DataError: the data cannot be used with this model.
        ModelError: learning through the model was asked for, and transformers cannot read it.
        SteeringError: llama.cpp cannot steer the model.
        StorageError: there is no room or no right to keep what is read.
    """
    stopwatch = Stopwatch(progress)
    run, weights = begin(llama, data, settings, stopwatch)
    learnt = learn(run, weights)
    del weights  # its memory
    chosen, trials = _tune(run, learnt)
    gate, gate_fit, read = learn_gate(run, chosen.layers[0])
    kinds = train_kinds(run.data.kinds, gate, gate_fit, read, run.progress)
    answer_gate = _watch(run, chosen.layers[0])
    return assemble(run, learnt, chosen, trials, gate, gate_fit, read, kinds, answer_gate, stopwatch)


def _tune(run: Run, learnt: Learnt) -> tuple[Trial, list[Trial]]:
    """The best setting for what was learnt, and all that were tried."""
    llama = run.model_data.answering
    found = tune(
        llama,
        blank_profile(run),
        learnt.experts,
        learnt.held,
        _asked(run, learnt),
        learnt.own,
        judge=run.data.judge,
        learnt=run.learns,
        folder=run.folder,
        progress=run.progress,
        n_answers=run.effort.answers,
        expert=run.data.expert,
        keep=run.settings.keep,
        deadline=_tuned_by(run),
        block=BLOCK if llama is run.llama else LARGE_BLOCK,
    )
    llama.set_profiles([])
    run.model_data.answering = run.llama  # its weights in PyTorch are no longer needed, and their memory is
    return found


def _tuned_by(run: Run) -> Deadline:
    """Until when settings are tried."""
    minutes = run.settings.minutes
    return Deadline(None if run.settings.quality else max(run.deadline.left, minutes * 60 * TUNING_PART))


def _asked(run: Run, learnt: Learnt) -> list[Prompt]:
    """The prompts that trials answer: those from which nothing was learnt.

    Where pairs judge, the answers only tell whether they are language. A handful tells too little, and what was learnt
    from serves as well.
    """
    untaught = learnt.untaught(run.data.positive)
    if run.data.judge == "margin" and len(untaught) < FEWEST_ANSWERS:
        return [*untaught, *spread(learnt.taught, FEWEST_ANSWERS - len(untaught))]
    return untaught


def learn_gate(run: Run, layer: int) -> tuple[Gate, GateFit | None, GateData | None]:
    """The gate that was asked for, reading `layer`, how well it tells held-out prompts apart, and from what it was
    learnt."""
    settings = run.settings
    if not settings.gated:
        return AlwaysGate(), None, None
    deadline = run.deadline.sooner(settings.minutes * 60 * LAST_PART if run.watches else 0.0)
    found = read_for_gate(run.model_data, run.for_gate, layer, deadline, keep=settings.keep)
    if settings.gate == "scs":
        positive, contrast = found.turns.parted(len(found.positive))
        learn, held = held_out(found.positive, settings.seed)
        return *fit_subspace_gate(positive.last[learn], positive.last[held], contrast.last), found
    told = taught(run.model_data, run.teachers, found.prompts)
    gate, fit = fit_gate(
        run.model_data,
        run.data,
        found,
        seed=settings.seed,
        taught=told,
        progress=lambda done, total: run.progress("training the gate", done, total),
    )
    return gate, fit, replace(found, teachers=[lesson.model for lesson in told.lessons]) if told else found


def _watch(run: Run, layer: int) -> tuple[AnswerGate, AnswerGateFit] | None:
    """The gate that reads the answers at `layer`, and how well it tells them apart; None where there is none."""
    if not run.watches:
        return None
    return learn_answer_gate(
        run.model_data, run.data, layer, run.effort.watched, deadline=run.deadline, keep=run.settings.keep
    )


def train_profile(
    model: str | Path,
    *,
    data: TrainingData,
    settings: TrainingSettings | None = None,
    n_threads: int | None = None,
    progress: Progress = quiet,
    backend: str = "llama.cpp",
    gguf: str | Path | None = None,
    **llama_options: Any,
) -> Profile:
    """Open the model at `model`, GGUF or (backend `transformers`) a directory, and `train` a profile for it."""
    if n_threads:
        torch.set_num_threads(n_threads)
    opened: AbstractContextManager[TrainableModel]
    if backend == "transformers":
        from finesteer_local.training.transformers_model import TransformersModel

        opened = closing(TransformersModel(model, gguf=gguf))
    else:
        opened = open_fast(model, n_threads=n_threads, **llama_options)
    with opened as llama:
        return train(llama, data, settings or TrainingSettings(), progress)
