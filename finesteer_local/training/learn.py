"""Learns what steers: experts from differences of hidden states, or vectors through the model, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finesteer_local import paths
from finesteer_local.errors import DataError
from finesteer_local.steering import Experts
from finesteer_local.training.data import Pair, Prompt, TrainingData, spread
from finesteer_local.training.experts import Fit, train_experts
from finesteer_local.training.optimise import Vectors, likelier, whole
from finesteer_local.training.pairs import (
    DELTA_TOKENS,
    OWN_TOKENS,
    REPLY_TOKENS,
    against_replies,
    by_expert,
    clipped,
    held_out,
    lesson,
    natural,
    sample,
)
from finesteer_local.training.run import VECTORS, Run
from finesteer_local.training.trials import OWN_ANSWERS


@dataclass(frozen=True)
class Learnt:
    """What steers, by layer, and what it was learnt from."""

    experts: dict[int, Experts]
    taught: list[Prompt]
    held: list[Pair]  # pairs that taught nothing
    own: list[str]  # the model's unsteered replies
    n_pairs: int
    shares: dict[int, list[float]]  # of the training pairs, by the expert whose cluster they are in
    figures: dict[str, Any]  # by layer, for the profile's provenance

    def untaught(self, prompts: list[Prompt]) -> list[Prompt]:
        """Those from which nothing was learnt."""
        seen = {prompt.text for prompt in self.taught}
        return [prompt for prompt in prompts if prompt.text not in seen]


def learn(run: Run, weights: Any) -> Learnt:
    """What steers, learnt in the way that suits the run; `weights` are those that `run.begin` gave with it.

    Raises:
        DataError: nothing can be learnt from these answers.
    """
    if run.learns and run.data.judge == "refusal":
        return from_answers(run, weights)
    return from_pairs(run, weights)


def from_answers(run: Run, weights: Any) -> Learnt:
    """Vectors learnt through the model from whole answers: one a layer, or one for each expert that the kinds name.

    Kinds are told beside a contrastive gate alone; under another one all requests get one vector.
    """
    llama, seed = run.llama, run.settings.seed
    pairs = lesson(run.data, seed)
    learn, held = held_out([pair.prompt for pair in pairs], seed)
    own = run.model_data.replies(spread([pairs[i] for i in held], OWN_ANSWERS), OWN_TOKENS)
    taught = [pairs[i] for i in learn]
    names = experts_of(run.data, taught) if run.settings.gate == "contrastive" else []

    def learnt() -> Vectors:
        return whole(
            weights,
            llama,
            taught,
            run.layers,
            end=llama.turn_end,
            seed=seed,
            progress=run.progress,
            n_answers=run.effort.lessons,
            experts=[names.index(run.data.expert(pair.prompt)) for pair in taught] if names else (),
        )

    vectors = _kept(run, learnt)
    groups = by_expert(run.data, run.data.pairs)
    total = sum(len(groups[name]) for name in names)
    shares = {name: len(groups[name]) / total for name in names}
    return Learnt(
        experts={
            layer: Experts.for_kinds(dict(zip(names, vector, strict=True)), shares) if names else Experts.fixed(vector)
            for layer, vector in vectors.items()
        },
        taught=[pair.prompt for pair in taught],
        held=[pairs[i] for i in held],
        own=own,
        n_pairs=len(pairs),
        shares={layer: list(shares.values()) for layer in vectors} if names else {},
        figures={
            str(layer): {"length": float(np.linalg.norm(np.atleast_2d(vector), axis=1).mean())}
            for layer, vector in vectors.items()
        },
    )


def experts_of(data: TrainingData, pairs: Sequence[Pair]) -> list[str]:
    """The experts that the kinds of `data` name and that some of the pairs are for, where there are several."""
    names = sorted({data.expert(pair.prompt) for pair in pairs})
    return names if len(names) > 1 and "" not in names else []


def from_pairs(run: Run, weights: Any) -> Learnt:
    """Experts from differences of hidden states; where the run learns, moved together by what is learnt through it."""
    data, seed = run.data, run.settings.seed
    pairs = sample(data, seed, run.effort.share)
    if data.pooled:
        pairs = natural(run.model_data, data, pairs)
    own = run.model_data.replies(spread(pairs, OWN_ANSWERS), OWN_TOKENS)
    if data.own_replies:
        pairs = against_replies(pairs, run.model_data.replies(pairs, REPLY_TOKENS), data.judge)
    learn, held = held_out([pair.prompt for pair in pairs], seed)
    experts, fits = _experts(run, pairs, learn, held)
    taught = [pairs[i] for i in learn]
    if run.learns:
        if not data.own_replies:  # then those that were not drawn cost nothing else
            reserved = {pairs[i].prompt.text for i in held}
            taught = [pair for pair in data.pairs if pair.prompt.text not in reserved]
        vectors = _kept(run, lambda: likelier(weights, run.llama, taught, run.layers, seed=seed, progress=run.progress))
        experts = {layer: experts[layer].moved_to(vector) for layer, vector in vectors.items()}
    return Learnt(
        experts=experts,
        taught=[pair.prompt for pair in taught],
        held=[pairs[i] for i in held],
        own=own,
        n_pairs=len(pairs),
        shares={layer: list(fit.shares) for layer, fit in fits.items() if experts[layer].distinguishes},
        figures={
            str(layer): {"explained": fit.explained, "cosine": fit.cosine, "epochs": fit.epochs}
            for layer, fit in fits.items()
        },
    )


def _experts(
    run: Run, pairs: list[Pair], learn: list[int], held: list[int]
) -> tuple[dict[int, Experts], dict[int, Fit]]:
    """Experts of every layer, from the differences between the two answers' beginnings."""
    states, deltas = run.model_data.deltas([clipped(run.llama, pair) for pair in pairs], run.layers)
    if not deltas.any():
        raise DataError(f"the answers of every pair begin with the same {DELTA_TOKENS} tokens; nothing can be learnt")
    kinds = [pair.prompt.kind for pair in pairs]
    experts: dict[int, Experts] = {}
    fits: dict[int, Fit] = {}
    for i, layer in enumerate(run.layers):
        experts[layer], fits[layer] = train_experts(
            np.ascontiguousarray(states[:, i]),
            np.ascontiguousarray(deltas[:, i]),
            kinds,
            learn,
            held,
            seed=run.settings.seed,
        )
        run.progress("training experts", i + 1, len(run.layers))
    return experts, fits


def _kept(run: Run, learnt: Callable[[], Vectors]) -> Vectors:
    """What `learnt` gives, from the run's folder where an interrupted run left it there."""
    file = run.folder / VECTORS
    if not file.exists():
        vectors = {str(layer): vector for layer, vector in learnt().items()}
        with paths.atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **vectors)  # type: ignore[arg-type]
    with np.load(file, allow_pickle=False) as kept:
        return {int(layer): kept[layer] for layer in kept.files}
