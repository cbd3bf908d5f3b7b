"""Training a profile from a GGUF model: harvest, experts, tuning, gate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finesteer_local import paths
from finesteer_local.errors import DataError, ModelError, ProfileError
from finesteer_local.profile import MAX_STRENGTH, SCOPES, Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.expand import open_fast
from finesteer_local.steering import AlwaysGate, Experts, Gate
from finesteer_local.training.data import PAGE, QUALITIES, Pair, Prompt, TrainingData, spread
from finesteer_local.training.experts import Fit, train_experts
from finesteer_local.training.gates import GateFit, fit_contrastive_gate, fit_subspace_gate
from finesteer_local.training.harvest import Progress, TrainingHarvest, quiet, run_folder
from finesteer_local.training.optimise import Vectors, learns_by_itself, likelier, weights_of, whole
from finesteer_local.training.pairs import (
    DELTA_TOKENS,
    MAX_PAIRS,
    OWN_TOKENS,
    REPLY_TOKENS,
    against_replies,
    clipped,
    decline_alike,
    held_out,
    lesson,
    natural,
    sample,
)
from finesteer_local.training.tune import OWN_ANSWERS, as_rows, tune

LAYERS = {"refusal": (0.43, 0.48), "margin": (0.27, 0.37, 0.43, 0.48)}
"""Candidates, as shares of the depth, by the recipe's judge: lower ones hardly steer refusals but do steer facts
(docs/method.md), above 0.55 the text falls apart (DESIGN.md)."""
LEARNT_LAYERS = {"refusal": (0.43, 0.57, 0.7), "margin": (0.27,)}
"""Layers that are learnt through the model, together. The gate reads the lowest, so that one pass does."""
GATES = ("contrastive", "scs", "always")


@dataclass(frozen=True)
class Settings:
    """What a run does; part of its identity."""

    gate: str = "contrastive"
    seed: int = 0
    layer: int | None = None
    strength: float | None = None
    scope: str | None = None
    optimise: bool | None = None  # None: where it is the better way, see `learns_by_itself`
    quality: str = "standard"  # one of QUALITIES

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ProfileError(f"gate {self.gate!r} is none of {', '.join(GATES)}")
        if self.quality not in QUALITIES:
            raise ProfileError(f"quality {self.quality!r} is none of {', '.join(QUALITIES)}")
        if self.strength is not None and not 0 <= self.strength <= MAX_STRENGTH:
            raise ProfileError(f"strength {self.strength} is not in [0, {MAX_STRENGTH:g}]")
        if self.scope is not None and self.scope not in SCOPES:
            raise ProfileError(f"scope {self.scope!r} is none of {', '.join(SCOPES)}")


class _Stopwatch:
    """Passes progress on, and adds up how long every stage takes."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}  # by stage, in the order in which they begin
        self._progress, self._last = progress, time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        self._progress(stage, done, total)


def train(llama: SteeredLlama, data: TrainingData, settings: Settings, progress: Progress = quiet) -> Profile:
    """Train a profile on `data` for the loaded model.

    An interrupted run leaves its harvest behind and goes on from there; a finished one leaves nothing.

    Raises:
        DataError: the data cannot be used with this model.
        SteeringError: llama.cpp cannot steer the model.
        StorageError: there is no room or no right to keep the harvest.
    """
    started = time.monotonic()
    progress = stopwatch = _Stopwatch(progress)
    model, learns = _weights(llama, data, settings)
    layers = _candidates(llama, data.judge, settings, learns)
    llama.check_steerable(layers)
    gated = settings.gate != "always"
    if gated and not data.contrast:
        raise DataError("there are no prompts that must stay untouched; without them no gate can be trained")
    # What decides the shape of the harvest belongs to the run's identity, so that another version starts anew.
    shape = {"layers": layers, "pairs": MAX_PAIRS, "tokens": DELTA_TOKENS, "learns": learns}
    # The gate comes last and is learnt in one go, so a run goes on whatever its quality.
    folder = run_folder(llama, data, {**asdict(settings), **shape, "quality": None})
    harvest = TrainingHarvest(llama, data, folder, progress)
    data = _with_fitting_pages(harvest, data)
    for_gate = data.part(QUALITIES[settings.quality])
    harvest.check([*(pair.prompt for pair in data.pairs), *(for_gate.contrast if gated else ())])
    if learns and data.judge == "refusal":
        found = _from_answers(harvest, data, layers, model, settings, progress)
    else:
        found = _from_pairs(harvest, data, layers, model, settings, progress)
    model = None  # its memory
    blank = Profile(
        name=data.name,
        model=llama.identity,
        gate=AlwaysGate(),
        gate_layer=layers[0],
        experts={layers[0]: Experts.fixed(np.zeros(llama.n_embd(), np.float32))},
        description=data.description,
        license=data.license,
    )
    seen = {prompt.text for prompt in found.taught}
    chosen, trials = tune(
        llama,
        blank,
        found.experts,
        found.held,
        [prompt for prompt in data.positive if prompt.text not in seen],
        found.own,
        judge=data.judge,
        learnt=learns,
        folder=folder,
        progress=progress,
    )
    llama.set_profiles([])
    gate_layer = chosen.layers[0]
    gate, gate_fit = _gate(harvest, for_gate, gate_layer, settings, progress)
    seconds = time.monotonic() - started
    profile = replace(
        blank,
        gate=gate,
        gate_layer=gate_layer,
        experts={layer: found.experts[layer] for layer in chosen.layers},
        strength=settings.strength if settings.strength is not None else chosen.strength,
        scope=settings.scope or chosen.scope,
        answer_strength=chosen.answer_strength,
        length_decay=chosen.length_decay,
        training={
            "recipe": data.recipe,
            "data_hash": data.hash,
            "pairs": len(data.pairs),
            "pairs_for_experts": found.n_pairs,
            "contrast_prompts": len(data.contrast),
            "quality": settings.quality,
            "prompts_for_gate": len(for_gate.positive) + len(for_gate.contrast) if gated else 0,
            "optimised": learns,
            "expert_shares": {str(layer): found.shares[layer] for layer in chosen.layers if layer in found.shares},
            "seed": settings.seed,
            "seconds": round(seconds, 1),
            "stages": {stage: round(each, 1) for stage, each in stopwatch.seconds.items()},
            "versions": {name: metadata.version(name) for name in ("finesteer-local", "llama-cpp-python", "torch")},
            "model_file": Path(llama.model_path).name,
            "figures": {
                "gate": None if gate_fit is None else _rounded(asdict(gate_fit)),
                "experts": found.figures,
                "answers": _rounded(asdict(chosen)),
            },
            "trials": [_rounded(row) for row in as_rows(trials)],
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    return profile


def _weights(llama: SteeredLlama, data: TrainingData, settings: Settings) -> tuple[Any, bool]:
    """The model for PyTorch, where it is to be learnt through, and whether it is.

    Read before anything that takes minutes: it may not be readable.
    """
    learns = learns_by_itself(llama, data.judge) if settings.optimise is None else settings.optimise
    try:
        return (weights_of(llama) if learns else None), learns
    except ModelError:
        if settings.optimise:
            raise
        return None, False  # differences of states do for every model


def _with_fitting_pages(harvest: TrainingHarvest, data: TrainingData) -> TrainingData:
    """The data without the pages that a small context has no room for: the recipe made them, and has others."""

    def stays(prompt: Prompt) -> bool:
        return prompt.form != PAGE or harvest.fits(prompt)

    pairs, contrast = [p for p in data.pairs if stays(p.prompt)], [p for p in data.contrast if stays(p)]
    dropped = len(pairs) < len(data.pairs) or len(contrast) < len(data.contrast)
    return replace(data, pairs=pairs, contrast=contrast) if dropped else data


@dataclass(frozen=True)
class _Found:
    """What steers, by layer, and what it was learnt from."""

    experts: dict[int, Experts]
    taught: list[Prompt]
    held: list[Pair]  # pairs that taught nothing
    own: list[str]  # the model's unsteered replies
    n_pairs: int
    shares: dict[int, list[float]]  # of the training pairs, by the expert whose cluster they are in
    figures: dict[str, Any]


def _from_answers(
    harvest: TrainingHarvest,
    data: TrainingData,
    layers: list[int],
    model: Any,
    settings: Settings,
    progress: Progress,
) -> _Found:
    """One vector a layer, learnt through the model from whole answers."""
    llama = harvest.llama
    pairs = lesson(data, settings.seed)
    if data.pooled:
        pairs = decline_alike(pairs)
    learn, held = held_out([pair.prompt for pair in pairs], settings.seed)
    own = harvest.replies(spread([pairs[i] for i in held], OWN_ANSWERS), OWN_TOKENS)

    def learnt() -> Vectors:
        taught = [pairs[i] for i in learn]
        return whole(model, llama, taught, layers, end=llama.turn_end, seed=settings.seed, progress=progress)

    vectors = _keeping(_kept(harvest.folder), learnt)
    return _Found(
        experts={layer: Experts.fixed(vector) for layer, vector in vectors.items()},
        taught=[pairs[i].prompt for i in learn],
        held=[pairs[i] for i in held],
        own=own,
        n_pairs=len(pairs),
        shares={},
        figures={str(layer): {"length": round(float(np.linalg.norm(v)), 4)} for layer, v in vectors.items()},
    )


def _from_pairs(
    harvest: TrainingHarvest,
    data: TrainingData,
    layers: list[int],
    model: Any,
    settings: Settings,
    progress: Progress,
) -> _Found:
    """Experts from differences of hidden states; with a model, moved together by what is learnt through it."""
    llama = harvest.llama
    pairs = sample(data, settings.seed)
    if data.pooled:
        pairs = natural(harvest, pairs)
    own = harvest.replies(spread(pairs, OWN_ANSWERS), OWN_TOKENS)
    if data.own_replies:
        pairs = against_replies(pairs, harvest.replies(pairs, REPLY_TOKENS), data.judge)
    states, deltas = harvest.deltas([clipped(llama, pair) for pair in pairs], layers)
    if not deltas.any():
        raise DataError(f"the answers of every pair begin with the same {DELTA_TOKENS} tokens; nothing can be learnt")
    learn, held = held_out([pair.prompt for pair in pairs], settings.seed)
    taught = [pairs[i] for i in learn]
    kinds = [pair.prompt.kind for pair in pairs]
    experts: dict[int, Experts] = {}
    fits: dict[int, Fit] = {}
    for i, layer in enumerate(layers):
        experts[layer], fits[layer] = train_experts(
            np.ascontiguousarray(states[:, i]),
            np.ascontiguousarray(deltas[:, i]),
            kinds,
            learn,
            held,
            seed=settings.seed,
        )
        progress("training experts", i + 1, len(layers))
    if model is not None:
        if not data.own_replies:  # then those that were not drawn cost nothing else
            reserved = {pairs[i].prompt.text for i in held}
            taught = [pair for pair in data.pairs if pair.prompt.text not in reserved]

        def learnt() -> Vectors:
            return likelier(model, llama, taught, layers, seed=settings.seed, progress=progress)

        for layer, vector in _keeping(_kept(harvest.folder), learnt).items():
            experts[layer] = experts[layer].moved_to(vector)
    return _Found(
        experts=experts,
        taught=[pair.prompt for pair in taught],
        held=[pairs[i] for i in held],
        own=own,
        n_pairs=len(pairs),
        shares={layer: list(fit.shares) for layer, fit in fits.items() if experts[layer].distinguishes},
        figures={
            str(layer): _rounded({"explained": fit.explained, "cosine": fit.cosine, "epochs": fit.epochs})
            for layer, fit in fits.items()
        },
    )


def _kept(folder: Path) -> Path:
    """What an interrupted run learnt through the model: it takes minutes."""
    return folder / "vectors.npz"


def _keeping(file: Path, learnt: Callable[[], Vectors]) -> Vectors:
    """What `learnt` gives, from the file if it is there."""
    if not file.exists():
        vectors = {str(layer): vector for layer, vector in learnt().items()}
        with paths.atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **vectors)  # type: ignore[arg-type]
    with np.load(file, allow_pickle=False) as kept:
        return {int(layer): kept[layer] for layer in kept.files}


def train_profile(
    model: str | Path,
    *,
    data: TrainingData,
    settings: Settings | None = None,
    n_threads: int | None = None,
    progress: Progress = quiet,
    backend: str = "llama.cpp",
    gguf: str | Path | None = None,
    **llama_options: Any,
) -> Profile:
    """Open the model at `model`, GGUF or (backend `transformers`) a directory, and `train` a profile for it."""
    if n_threads:
        torch.set_num_threads(n_threads)
    opened: AbstractContextManager[Any]
    if backend == "transformers":
        from finesteer_local.training.transformers_model import TransformersModel

        opened = closing(TransformersModel(model, gguf=gguf))
    else:
        opened = open_fast(model, n_threads=n_threads, **llama_options)
    with opened as llama:
        return train(llama, data, settings or Settings(), progress)


def _candidates(llama: SteeredLlama, judge: str, settings: Settings, learns: bool) -> list[int]:
    top = llama.n_layer - 2  # the last layer's output holds only the tokens that have logits
    if settings.layer is not None:
        if not 1 <= settings.layer <= top:
            raise DataError(f"layer {settings.layer} cannot be steered; this model allows 1 to {top}")
        return [settings.layer]
    # Learnt through the model, all that is above the lowest can still be brought about, and one layer takes minutes.
    shares = LAYERS[judge] if not learns else LEARNT_LAYERS[judge]
    return sorted({min(max(round(share * llama.n_layer), 1), top) for share in shares})


def _gate(
    harvest: TrainingHarvest, data: TrainingData, layer: int, settings: Settings, progress: Progress
) -> tuple[Gate, GateFit | None]:
    if settings.gate == "always":
        return AlwaysGate(), None
    prompts = data.positive
    everything = [*prompts, *data.contrast]
    positive, contrast = harvest.turns(everything, layer).parted(len(prompts))
    if settings.gate == "scs":
        learn, held = held_out(prompts, settings.seed)
        return fit_subspace_gate(positive.last[learn], positive.last[held], contrast.last)
    return fit_contrastive_gate(
        positive,
        contrast,
        [prompt.family for prompt in everything],
        [prompt.form for prompt in everything],
        [harvest.request_span(prompt) for prompt in everything],
        seed=settings.seed,
        graded=data.judge == "margin",
        progress=lambda done, total: progress("training the gate", done, total),
    )


def _rounded(value: Any) -> Any:
    """Figures as the file has them: with four digits behind the point, and lists where there were tuples."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value
