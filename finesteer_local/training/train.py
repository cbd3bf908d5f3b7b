"""Training a profile from a GGUF model: harvest, experts, tuning, gate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.errors import DataError, ProfileError
from finesteer_local.profile import MAX_STRENGTH, SCOPES, Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.expand import open_fast
from finesteer_local.steering import AlwaysGate, Experts, Gate
from finesteer_local.training.data import TrainingData, spread
from finesteer_local.training.experts import train_experts
from finesteer_local.training.gates import GateFit, fit_contrastive_gate, fit_subspace_gate
from finesteer_local.training.harvest import Progress, TrainingHarvest, Turns, quiet, run_folder
from finesteer_local.training.optimise import optimise, weights_of
from finesteer_local.training.pairs import (
    DELTA_TOKENS,
    MAX_PAIRS,
    OWN_TOKENS,
    REPLY_TOKENS,
    against_replies,
    clipped,
    held_out,
    natural,
    sample,
)
from finesteer_local.training.tune import OWN_ANSWERS, as_rows, tune

LAYERS = (0.27, 0.37, 0.43, 0.48)
"""Candidates, as shares of the depth: lower ones hardly steer refusals but do steer facts (docs/method.md), above 0.55
the text falls apart (DESIGN.md)."""
GATES = ("contrastive", "scs", "always")


@dataclass(frozen=True)
class Settings:
    """What a run does; part of its identity."""

    gate: str = "contrastive"
    seed: int = 0
    layer: int | None = None
    strength: float | None = None
    scope: str | None = None
    optimise: bool = False

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ProfileError(f"gate {self.gate!r} is none of {', '.join(GATES)}")
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
    layers = _candidates(llama, settings)
    llama.check_steerable(layers)
    gated = settings.gate != "always"
    if gated and not data.contrast:
        raise DataError("there are no prompts that must stay untouched; without them no gate can be trained")
    # What decides the shape of the harvest belongs to the run's identity, so that another version starts anew.
    folder = run_folder(llama, data, {**asdict(settings), "layers": LAYERS, "pairs": MAX_PAIRS, "tokens": DELTA_TOKENS})
    optimised = folder / "prototypes.npy"  # of an interrupted run: it takes minutes
    # Before anything else that takes minutes: it may not be readable.
    model = weights_of(llama) if settings.optimise and not optimised.exists() else None
    harvest = TrainingHarvest(llama, data, folder, progress)
    harvest.check([*(pair.prompt for pair in data.pairs), *(data.contrast if gated else ())])
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
    if settings.optimise and not data.own_replies:  # then those that were not drawn cost nothing else
        reserved = {pairs[i].prompt.text for i in held}
        taught = [pair for pair in data.pairs if pair.prompt.text not in reserved]
    seen = {pair.prompt.text for pair in taught}
    blank = _blank(llama, data, states, layers)
    experts: dict[int, Experts] = {}
    fits: dict[int, Any] = {}
    kinds = [pair.prompt.kind for pair in pairs]
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
    if settings.optimise:
        [layer] = layers
        if model is not None:
            experts[layer] = optimise(
                model, llama, taught, experts[layer], fits[layer].shares, layer, seed=settings.seed, progress=progress
            )
            with paths.atomic_write(optimised) as temporary, temporary.open("wb") as stream:
                np.save(stream, experts[layer].prototypes, allow_pickle=False)
        experts[layer] = replace(experts[layer], prototypes=np.load(optimised, allow_pickle=False))
        model = None  # its memory
    chosen, trials = tune(
        llama,
        blank,
        experts,
        [pairs[i] for i in held],
        [prompt for prompt in data.positive if prompt.text not in seen],
        own,
        judge=data.judge,
        folder=folder,
        progress=progress,
    )
    llama.set_profiles([])
    gate, gate_fit = _gate(harvest, data, chosen.layer, settings, progress)
    seconds = time.monotonic() - started
    profile = replace(
        blank,
        gate=gate,
        gate_layer=chosen.layer,
        experts={chosen.layer: experts[chosen.layer]},
        strength=settings.strength if settings.strength is not None else chosen.strength,
        scope=settings.scope or chosen.scope,
        answer_strength=chosen.answer_strength,
        length_decay=chosen.length_decay,
        training={
            "recipe": data.recipe,
            "data_hash": data.hash,
            "pairs": len(data.pairs),
            "pairs_for_experts": len(pairs),
            "contrast_prompts": len(data.contrast),
            "optimised": settings.optimise,
            "expert_shares": {str(chosen.layer): list(fits[chosen.layer].shares)},
            "seed": settings.seed,
            "seconds": round(seconds, 1),
            "stages": {stage: round(each, 1) for stage, each in stopwatch.seconds.items()},
            "versions": {name: metadata.version(name) for name in ("finesteer-local", "llama-cpp-python", "torch")},
            "model_file": Path(llama.model_path).name,
            "figures": {
                "gate": None if gate_fit is None else _rounded(asdict(gate_fit)),
                "experts": {
                    str(layer): _rounded({"explained": fit.explained, "cosine": fit.cosine, "epochs": fit.epochs})
                    for layer, fit in fits.items()
                },
                "answers": _rounded(asdict(chosen)),
            },
            "trials": [_rounded(row) for row in as_rows(trials)],
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    return profile


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


def _candidates(llama: SteeredLlama, settings: Settings) -> list[int]:
    top = llama.n_layer - 2  # the last layer's output holds only the tokens that have logits
    if settings.layer is not None:
        if not 1 <= settings.layer <= top:
            raise DataError(f"layer {settings.layer} cannot be steered; this model allows 1 to {top}")
        return [settings.layer]
    # Optimised, all that is above the lowest can still be brought about, and one layer takes minutes.
    shares = LAYERS[:1] if settings.optimise else LAYERS
    return sorted({min(max(round(share * llama.n_layer), 1), top) for share in shares})


def _blank(llama: SteeredLlama, data: TrainingData, states: NDArray[np.float32], layers: Sequence[int]) -> Profile:
    """A profile with everything but what is learnt."""
    return Profile(
        name=data.name,
        model=llama.identity,
        gate=AlwaysGate(),
        gate_layer=layers[0],
        experts={layers[0]: Experts.fixed(np.zeros(states.shape[2], np.float32))},
        description=data.description,
        license=data.license,
    )


def _gate(
    harvest: TrainingHarvest, data: TrainingData, layer: int, settings: Settings, progress: Progress
) -> tuple[Gate, GateFit | None]:
    if settings.gate == "always":
        return AlwaysGate(), None
    prompts = data.positive
    n = len(prompts)
    everything = harvest.turns([*prompts, *data.contrast], layer)
    positive = Turns(everything.states, everything.offsets[: n + 1])
    contrast = Turns(everything.states[everything.offsets[n] :], everything.offsets[n:] - everything.offsets[n])
    if settings.gate == "scs":
        learn, held = held_out(prompts, settings.seed)
        return fit_subspace_gate(positive.last[learn], positive.last[held], contrast.last)
    return fit_contrastive_gate(
        positive,
        contrast,
        [prompt.family for prompt in (*prompts, *data.contrast)],
        seed=settings.seed,
        graded=data.judge == "margin",
        progress=lambda done, total: progress("training the gate", done, total),
    )


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
