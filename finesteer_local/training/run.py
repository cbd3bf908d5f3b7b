"""The beginning of a training: what it will do with this model, checked before anything takes minutes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finesteer_local import paths
from finesteer_local.errors import DataError, ModelError
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training.data import PAGE, Prompt, TrainingData, spread
from finesteer_local.training.effort import Deadline, Effort, Pace, effort_of, fitting, least_seconds
from finesteer_local.training.layers import candidate_layers
from finesteer_local.training.model_data import ModelData, run_folder
from finesteer_local.training.pairs import DELTA_TOKENS, HANDFUL, MAX_PAIRS
from finesteer_local.training.progress import Progress
from finesteer_local.training.settings import TrainingSettings
from finesteer_local.training.teacher import Teacher, load_teachers
from finesteer_local.training.torch_engine import TIMED, faster_engine, worth_opening
from finesteer_local.training.weights import learns_by_itself, weights_of

log = logging.getLogger("finesteer_local")

PLANS = "plans.json"
"""In the folder of all runs of these settings: by the minutes that were given, what was found to fit into them. A run
that goes on does what it set out to do."""
LATE = 1.15
"""Of the minutes that were given: who gave so much too few is told."""
VECTORS = "vectors.npz"
"""In the run's folder: what was learnt through the model, which takes minutes (learn.py)."""


@dataclass(frozen=True)
class Run:
    """One training of one profile: what every step of it needs.

    Attributes:
        model_data: what is read from the model, which is `llama`; its folder is where an interrupted run goes on.
        data: without the pages that do not fit the model's context.
        settings: what was asked for.
        effort: how much is done.
        deadline: until when.
        layers: candidates for steering, ascending.
        learns: whether what steers is learnt through the model in PyTorch.
        teachers: of the gate.
        progress: called with (stage, done, total).
    """

    model_data: ModelData
    data: TrainingData
    settings: TrainingSettings
    effort: Effort
    deadline: Deadline
    layers: list[int]
    learns: bool
    teachers: Sequence[Teacher]
    progress: Progress

    @property
    def llama(self) -> TrainableModel:
        return self.model_data.llama

    @property
    def folder(self) -> Path:
        """Where the run keeps what took long, until its profile is written."""
        return self.model_data.folder

    @property
    def watches(self) -> bool:
        """Whether a gate that reads the answers is learnt."""
        return watches(self.data, self.settings) and self.effort.watched > 0

    @cached_property
    def for_gate(self) -> TrainingData:
        """What the gate may learn from."""
        return self.data.part(self.effort.prompts)


def watches(data: TrainingData, settings: TrainingSettings) -> bool:
    """Whether a run is to learn a gate that reads the answers: where there is a gate, and answers that should not be.

    What is judged by margins has none: an answer that is not true enough looks like any other.
    """
    return settings.watch and settings.gated and data.judge == "refusal"


def begin(llama: TrainableModel, data: TrainingData, settings: TrainingSettings, progress: Progress) -> tuple[Run, Any]:
    """A run for the loaded model, with the model's weights for PyTorch where they will be learnt through, or None.

    Raises:
        DataError: the data, or the layer that was asked for, does not fit this model.
        ModelError: learning through the model was asked for, and transformers cannot read it.
        SteeringError: llama.cpp cannot steer the model.
        StorageError: there is no room or no right to keep what is read.
    """
    if settings.gated and not data.contrast:
        raise DataError("there are no prompts that must stay untouched; without them no gate can be trained")
    teachers = load_teachers(data.teachers) if settings.gated else []  # needed long after this, and may be damaged
    deadline = Deadline(None if settings.quality else settings.minutes * 60)
    learns = learns_by_itself(llama, data.judge) if settings.optimise is None else settings.optimise
    try:
        return _run(llama, data, settings, deadline, learns, teachers, progress)
    except ModelError:
        if settings.optimise or not learns:
            raise
        # Differences of states do for every model.
        return _run(llama, data, settings, deadline, False, teachers, progress)


def _run(
    llama: TrainableModel,
    data: TrainingData,
    settings: TrainingSettings,
    deadline: Deadline,
    learns: bool,
    teachers: Sequence[Teacher],
    progress: Progress,
) -> tuple[Run, Any]:
    """A run, and the model's weights where it needs them; raises `ModelError` where these cannot be read."""
    layers = candidate_layers(llama.n_layer, data.judge, learns=learns, layer=settings.layer)
    llama.check_steerable(layers)
    # What decides the shape of the harvest belongs to the run's identity, so that another version starts anew.
    shape = {"layers": layers, "pairs": MAX_PAIRS, "tokens": DELTA_TOKENS, "learns": learns, "answers": HANDFUL}
    model_data = ModelData(llama, data, run_folder(llama, data, {**settings.identity, **shape}), progress)
    fitting_data = _with_fitting_pages(model_data, data)
    asked_for = effort_of(settings.quality, llama.n_parameters) if settings.quality else None
    read = fitting_data.part(asked_for.prompts if asked_for else None).contrast if settings.gated else ()
    model_data.check([*(pair.prompt for pair in fitting_data.pairs), *read])
    # Before anything that takes minutes: they may not be readable.
    weights = weights_of(llama) if learns and not any(model_data.folder.glob(f"*/{VECTORS}")) else None
    opened = answer_faster(model_data, fitting_data, weights)
    effort = asked_for or _planned(model_data, fitting_data, settings, layers[0], learns, weights)
    model_data.go_to(model_data.folder / effort.name)
    if learns and weights is None and not (model_data.folder / VECTORS).exists():
        weights = opened or weights_of(llama)
    return Run(model_data, fitting_data, settings, effort, deadline, layers, learns, teachers, progress), weights


def answer_faster(model_data: ModelData, data: TrainingData, weights: Any = None) -> Any:
    """Have the model answer by the faster means; returns its weights for PyTorch where it may answer by them, or None.

    Args:
        data: some of its prompts are answered to find out.
        weights: those that are open already.
    """
    llama = model_data.llama
    with suppress(ModelError):
        weights = weights or (weights_of(llama) if worth_opening(llama) else None)
    asked = [prompt.messages for prompt in spread(data.positive, TIMED)]
    model_data.answering = faster_engine(llama, weights, asked)
    return weights


def _planned(
    model_data: ModelData, data: TrainingData, settings: TrainingSettings, layer: int, learns: bool, weights: Any
) -> Effort:
    """What fits into the minutes that were given, as it was found when a run first had so many."""
    file = model_data.folder / PLANS
    known: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    watching = watches(data, settings)
    key = f"{settings.minutes:g}{', watching' * watching}"
    if key not in known:
        model_data.progress("measuring this machine", 0, 1)
        pace = Pace.measured(model_data, data, layer, weights, watches=watching)
        model_data.progress("measuring this machine", 1, 1)
        effort = fitting(settings.minutes, pace, model_data.llama.n_parameters, learns=learns, judge=data.judge)
        n_prompts = len(data.positive) + len(data.contrast) if settings.gated else 0
        needed = least_seconds(effort, pace, n_prompts, learns=learns, judge=data.judge) / 60
        if needed > LATE * settings.minutes:
            log.warning("with this model, training takes %.1f minutes here at the least", needed)
        known[key] = [effort.share, effort.lessons, effort.answers, effort.watched]
        with paths.atomic_write(file) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    share, lessons, answers, watched = known[key]
    return Effort(None, share, int(lessons), int(answers), int(watched))


def _with_fitting_pages(model_data: ModelData, data: TrainingData) -> TrainingData:
    """The data without the pages that a small context has no room for: the recipe made them, and has others."""

    def stays(prompt: Prompt) -> bool:
        return prompt.form != PAGE or model_data.fits(prompt)

    pairs, contrast = [p for p in data.pairs if stays(p.prompt)], [p for p in data.contrast if stays(p)]
    dropped = len(pairs) < len(data.pairs) or len(contrast) < len(data.contrast)
    return replace(data, pairs=pairs, contrast=contrast) if dropped else data
