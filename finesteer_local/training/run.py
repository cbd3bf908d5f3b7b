"""The beginning of a training: what it will do with this model, checked before anything takes minutes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError, ModelError
from finesteer_local.runtime import SteeredLlama
from finesteer_local.training.data import PAGE, QUALITIES, Prompt, TrainingData
from finesteer_local.training.harvest import TrainingHarvest, run_folder
from finesteer_local.training.optimise import learns_by_itself, weights_of
from finesteer_local.training.pairs import DELTA_TOKENS, MAX_PAIRS
from finesteer_local.training.progress import Progress
from finesteer_local.training.settings import Settings

LAYERS = {"refusal": (0.43, 0.48), "margin": (0.27, 0.37, 0.43, 0.48)}
"""Candidates, as shares of the depth, by the recipe's judge: lower ones hardly steer refusals but do steer facts
(docs/method.md), above 0.55 the text falls apart (DESIGN.md)."""
LEARNT_LAYERS = {"refusal": (0.43, 0.57, 0.7), "margin": (0.27,)}
"""Layers that are learnt through the model, together. The gate reads the lowest, so that one pass does."""
VECTORS = "vectors.npz"
"""In the run's folder: what was learnt through the model, which takes minutes (learn.py)."""


@dataclass(frozen=True)
class Run:
    """One training of one profile: what every step of it needs.

    Attributes:
        harvest: what is read from the model, which is `llama`; its folder is where an interrupted run goes on.
        data: without the pages that do not fit the model's context.
        settings: what was asked for.
        layers: candidates for steering, ascending.
        learns: whether what steers is learnt through the model in PyTorch.
        progress: called with (stage, done, total).
    """

    harvest: TrainingHarvest
    data: TrainingData
    settings: Settings
    layers: list[int]
    learns: bool
    progress: Progress

    @property
    def llama(self) -> SteeredLlama:
        return self.harvest.llama

    @property
    def folder(self) -> Path:
        """Where the run keeps what took long, until its profile is written."""
        return self.harvest.folder

    @cached_property
    def for_gate(self) -> TrainingData:
        """The part of the data from which the gate learns."""
        return self.data.part(QUALITIES[self.settings.quality])


def begin(llama: SteeredLlama, data: TrainingData, settings: Settings, progress: Progress) -> tuple[Run, Any]:
    """A run for the loaded model, with the model's weights for PyTorch where they will be learnt through, or None.

    Raises:
        DataError: the data, or the layer that was asked for, does not fit this model.
        ModelError: learning through the model was asked for, and transformers cannot read it.
        SteeringError: llama.cpp cannot steer the model.
        StorageError: there is no room or no right to keep what is read.
    """
    if settings.gated and not data.contrast:
        raise DataError("there are no prompts that must stay untouched; without them no gate can be trained")
    learns = learns_by_itself(llama, data.judge) if settings.optimise is None else settings.optimise
    weights = None
    if learns and not (_folder(llama, data, settings, learns=True) / VECTORS).exists():
        try:
            weights = weights_of(llama)  # now: it may not be readable
        except ModelError:
            if settings.optimise:
                raise
            learns = False  # differences of states do for every model
    layers = candidate_layers(llama.n_layer, data.judge, learns=learns, layer=settings.layer)
    llama.check_steerable(layers)
    harvest = TrainingHarvest(llama, data, _folder(llama, data, settings, learns=learns), progress)
    run = Run(harvest, _with_fitting_pages(harvest, data), settings, layers, learns, progress)
    harvest.check([*(pair.prompt for pair in run.data.pairs), *(run.for_gate.contrast if settings.gated else ())])
    return run, weights


def _folder(llama: SteeredLlama, data: TrainingData, settings: Settings, *, learns: bool) -> Path:
    """Where a run keeps its state.

    What decides the shape of the harvest belongs to the run's identity, so that another version starts anew. The gate
    comes last and is learnt in one go, so a run goes on whatever its quality.
    """
    layers = candidate_layers(llama.n_layer, data.judge, learns=learns, layer=settings.layer)
    shape = {"layers": layers, "pairs": MAX_PAIRS, "tokens": DELTA_TOKENS, "learns": learns}
    return run_folder(llama, data, {**asdict(settings), **shape, "quality": None})


def candidate_layers(n_layer: int, judge: str, *, learns: bool, layer: int | None = None) -> list[int]:
    """Layers of a model of `n_layer` that may be steered, ascending; the one that was asked for, where one was.

    Raises:
        DataError: `layer` cannot be steered.
    """
    top = n_layer - 2  # the last layer's output holds only the tokens that have logits
    if layer is not None:
        if not 1 <= layer <= top:
            raise DataError(f"layer {layer} cannot be steered; this model allows 1 to {top}")
        return [layer]
    # Learnt through the model, all that is above the lowest can still be brought about, and one layer takes minutes.
    shares = LEARNT_LAYERS[judge] if learns else LAYERS[judge]
    return sorted({min(max(round(share * n_layer), 1), top) for share in shares})


def _with_fitting_pages(harvest: TrainingHarvest, data: TrainingData) -> TrainingData:
    """The data without the pages that a small context has no room for: the recipe made them, and has others."""

    def stays(prompt: Prompt) -> bool:
        return prompt.form != PAGE or harvest.fits(prompt)

    pairs, contrast = [p for p in data.pairs if stays(p.prompt)], [p for p in data.contrast if stays(p)]
    dropped = len(pairs) < len(data.pairs) or len(contrast) < len(data.contrast)
    return replace(data, pairs=pairs, contrast=contrast) if dropped else data
