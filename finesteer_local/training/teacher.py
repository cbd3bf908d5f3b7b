"""What a recipe's gate learnt on another model, handed on to a gate that reads a part of the recipe.

A gate from a thousand prompts has met a thousand subjects. The recipe's own, on the model that taught it, has met all.
Where two models read the same words their states are nearly linear images of each other (model stitching,
arXiv 2106.07682), so what the teacher's heads make of the tokens of some prompts says, by ridge regression, what heads
of another model to begin with; and what the teacher held of each prompt says more of it than its label (distillation,
arXiv 1503.02531). What both are worth is in docs/experiments.md.

The teacher is a mean of probes, each of which has not seen one fold of the prompts. Whoever learns from it takes over
the folds, and lets each probe begin with that of its fold: so what is held out was held out from the teacher, too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from finesteer_local import paths
from finesteer_local.errors import DataError
from finesteer_local.steering import ContrastiveGate
from finesteer_local.training.data import Prompt
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.probes import FOLDS, HEADS, Probes

Array = NDArray[np.float32]

PROMPTS = 32_000
"""Of so many prompts, the first of the recipe's order, a teacher says what it held of them; from more, a gate learns as
much from labels alone."""
ANCHORS = 2000
"""Of so many of these it says what its heads made of their tokens. With half as many a gate learns the same."""
RANK = 64
"""Numbers that are kept of the 256 that its heads make of a token: nine tenths of their variance."""
KNOWN = 0.9
"""This share of the prompts a teacher must know; otherwise the recipe is another one."""
ALIKE = 0.2
"""So much of the variance of what the teacher's heads made a model's states must explain, for its gate to begin with
them. Between the two models that were tried it is .6."""
LONGEST = 64
"""Tokens of a prompt's text that are anchors."""
_TAIL = 3  # and so many at its end, which are the template's
_WIDEST = 4.5  # deviations; what lies further out is cut
_RIDGE = 0.015  # of the states' variance
_RIDGE_LAST = 0.7  # a prompt has one last token


@dataclass(frozen=True)
class Lesson:
    """What one teacher's heads made of some turns.

    Attributes:
        model: which taught it.
        anchors: tokens, as rows (turn, token), (k, 2).
        heads: what the teacher's heads made of these, (k, RANK), of which `basis`, (RANK, 2 * FOLDS * HEADS), and
            `mean`, (2 * FOLDS * HEADS,), make logits and values, fold by fold.
        ends: turns whose last token is an anchor, (m,).
        last: what the teacher adds for it, (m,).
        bias: of the teacher.
    """

    model: str
    anchors: NDArray[np.intp]
    heads: Array
    basis: Array
    mean: Array
    ends: NDArray[np.intp]
    last: Array
    bias: float

    def start(self, states: Array, last: Array) -> tuple[Probes, float]:
        """Probes to begin with, from the standardised states of the `anchors`, (k, n_embd), and of the last tokens of
        the turns `ends`, (m, n_embd); and the share of the heads' variance that these states explain."""
        found = Ridge(alpha=_RIDGE * len(states)).fit(states, self.heads)
        explained = float(r2_score(self.heads, found.predict(states), multioutput="variance_weighted"))
        heads = found.coef_.T @ self.basis  # (n_embd, 2 * FOLDS * HEADS)
        constant = found.intercept_ @ self.basis + self.mean
        added = Ridge(alpha=_RIDGE_LAST * len(last)).fit(last, self.last)
        n = FOLDS * HEADS
        # A logit's constant makes no difference; a value's is added as it is, since a head's attention sums to one.
        bias = constant[n:].reshape(FOLDS, HEADS).sum(axis=1) + added.intercept_ + self.bias
        probes = Probes(states.shape[1])
        with torch.no_grad():
            probes.query.copy_(torch.from_numpy(heads[:, :n]))
            probes.value.copy_(torch.from_numpy(heads[:, n:]))
            probes.last.copy_(torch.from_numpy(added.coef_)[:, None])
            probes.bias.copy_(torch.from_numpy(bias))
        return probes, explained


@dataclass(frozen=True)
class Taught:
    """What a recipe's teachers say of some turns, in their order.

    Attributes:
        folds: of each turn, (n,): the teachers' probes of that fold have not seen it.
        scores: log-odds that each needs intervention, by these probes, (n,); the mean of the teachers, NaN where none
            knows it.
        lessons: of each teacher that has any.
    """

    folds: NDArray[np.intp]
    scores: Array
    lessons: Sequence[Lesson]

    def start(self, states: Callable[[NDArray[np.intp]], Array], lengths: NDArray[np.intp]) -> Probes | None:
        """Probes to begin with: those of the teacher of whom this model's states say the most.

        Args:
            states: standardised, of tokens as rows (turn, token), (n, n_embd).
            lengths: of the turns, in tokens.

        Returns:
            None where the model has too little in common with any of them.
        """
        found = [
            lesson.start(states(lesson.anchors), states(np.stack([lesson.ends, lengths[lesson.ends] - 1], axis=1)))
            for lesson in self.lessons
        ]
        probes, explained = max(found, key=lambda each: each[1], default=(None, 0.0))
        return probes if explained >= ALIKE else None


@dataclass(frozen=True)
class Teacher:
    """A recipe's gate on the model that taught it, as far as others need it; one `.npz` file.

    Attributes:
        model: its name, (), and the layer that the gate reads.
        places: of the prompts that it knows (`Prompt.place`), in the recipe's order, (n,).
        folds: of each, (n,).
        scores: of each, held out, log-odds, (n,).
        counts: of the first of these, how many tokens are anchors, (m,).
        offsets: where each anchor stands (`_anchors`), (k,).
        heads: what the heads made of each, in steps of `steps`, (RANK,), (k, RANK).
        basis, mean, last, bias: see `Lesson`; `last` of the first m prompts.
    """

    model: NDArray[np.str_]
    places: NDArray[np.uint64]
    folds: NDArray[np.uint8]
    scores: NDArray[np.float16]
    counts: NDArray[np.uint16]
    offsets: NDArray[np.int32]
    heads: NDArray[np.int8]
    steps: Array
    basis: NDArray[np.float16]
    mean: Array
    last: NDArray[np.float16]
    bias: Array

    @classmethod
    def load(cls, path: Path) -> Teacher:
        """Read a teacher; raises `DataError` for a file that is none."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                found = cls(**{field.name: kept[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: not a teacher's file, or damaged") from error
        n, m, k = len(found.places), len(found.counts), int(found.counts.sum())
        shapes = {
            "places": (n,),
            "folds": (n,),
            "scores": (n,),
            "counts": (m,),
            "offsets": (k,),
            "heads": (k, RANK),
            "steps": (RANK,),
            "basis": (RANK, 2 * FOLDS * HEADS),
            "mean": (2 * FOLDS * HEADS,),
            "last": (m,),
            "bias": (),
        }
        if any(getattr(found, name).shape != shape for name, shape in shapes.items()) or m > n:
            raise DataError(f"{path}: made by another version, whose arrays have other shapes")
        return found

    def save(self, path: Path) -> None:
        """Write the file, all of it or nothing."""
        with paths.atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def of(
        cls,
        model: str,
        gate: ContrastiveGate,
        model_data: ModelData,
        prompts: Sequence[Prompt],
        states: Sequence[Array],
        scores: NDArray[np.float64],
        folds: NDArray[np.intp],
    ) -> Teacher:
        """The teacher that a gate makes.

        Args:
            model: what is said of where it learnt.
            gate: trained on all of the recipe.
            prompts: all of them, in the recipe's order.
            states: of the turns of the first of these, from which anchors are taken, (n_tokens, n_embd) each.
            scores: log-odds of each by the probe that has not seen it, (n,).
            folds: of each, (n,).
        """
        anchors = [_anchors(model_data, prompt, longest=LONGEST) for prompt in prompts[: len(states)]]
        x = gate.standardised(np.concatenate([each[at] for each, (_, at) in zip(states, anchors, strict=True)]))
        made = np.concatenate([x @ gate.query, x @ gate.value_weight * FOLDS], axis=1)  # (k, 2 * FOLDS * HEADS)
        mean = made.mean(axis=0)
        u, size, basis = np.linalg.svd(made - mean, full_matrices=False)
        heads = u[:, :RANK] * size[:RANK]
        steps = np.minimum(np.abs(heads).max(axis=0), _WIDEST * heads.std(axis=0)) / 127
        last = gate.standardised(np.stack([each[-1] for each in states])) @ gate.last_weight
        return cls(
            model=np.array(model),
            places=np.array([prompt.place for prompt in prompts], np.uint64),
            folds=folds.astype(np.uint8),
            scores=scores.astype(np.float16),
            counts=np.array([len(offsets) for offsets, _ in anchors], np.uint16),
            offsets=np.concatenate([offsets for offsets, _ in anchors]),
            heads=np.clip(np.round(heads / steps), -127, 127).astype(np.int8),
            steps=steps.astype(np.float32),
            basis=basis[:RANK].astype(np.float16),
            mean=mean.astype(np.float32),
            last=last.astype(np.float16),
            bias=np.array(gate.bias, np.float32),
        )

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {int(place): i for i, place in enumerate(self.places)}

    def folds_of(self, prompts: Sequence[Prompt]) -> NDArray[np.intp]:
        """The fold of each prompt, (n,): one that is not known is in that of its family, or in any."""
        known = [self._rows.get(prompt.place) for prompt in prompts]
        families = {
            prompt.family: int(self.folds[row])
            for prompt, row in zip(prompts, known, strict=True)
            if row is not None and prompt.family
        }
        return np.array(
            [
                int(self.folds[row]) if row is not None else families.get(prompt.family, prompt.place % FOLDS)
                for prompt, row in zip(prompts, known, strict=True)
            ],
            np.intp,
        )

    def knows(self, prompts: Sequence[Prompt]) -> bool:
        """Whether it knows enough of these prompts to teach anything about them."""
        return sum(prompt.place in self._rows for prompt in prompts) >= KNOWN * len(prompts)

    def scores_of(self, prompts: Sequence[Prompt]) -> Array:
        """What it held of each prompt, (n,); NaN where it does not know it."""
        known = [self._rows.get(prompt.place) for prompt in prompts]
        return np.array([np.nan if row is None else self.scores[row] for row in known], np.float32)

    def lesson(self, model_data: ModelData, prompts: Sequence[Prompt]) -> Lesson | None:
        """What its heads made of these prompts, for another model, or its own; None where they made nothing of any."""
        starts = np.concatenate([[0], np.cumsum(self.counts, dtype=np.intp)])
        anchors: list[NDArray[np.intp]] = []
        rows: list[NDArray[np.intp]] = []
        ends: list[int] = []
        of: list[int] = []
        for turn, prompt in enumerate(prompts):
            row = self._rows.get(prompt.place)
            if row is None or row >= len(self.counts):
                continue
            offsets, tokens = _anchors(model_data, prompt)
            _, here, there = np.intersect1d(offsets, self.offsets[starts[row] : starts[row + 1]], return_indices=True)
            anchors.append(np.stack([np.full(len(here), turn), tokens[here]], axis=1))
            rows.append(starts[row] + there)
            ends.append(turn)
            of.append(row)
        if not anchors:
            return None
        return Lesson(
            model=str(self.model),
            anchors=np.concatenate(anchors),
            heads=self.heads[np.concatenate(rows)] * self.steps,
            basis=self.basis.astype(np.float32),
            mean=self.mean,
            ends=np.array(ends, np.intp),
            last=self.last[np.array(of, np.intp)].astype(np.float32),
            bias=float(self.bias),
        )


def load_teachers(paths: Sequence[Path]) -> list[Teacher]:
    """A recipe's teachers; raises `DataError` for a file that is none, or that has folds of its own."""
    found = [Teacher.load(path) for path in paths]
    for path, teacher in zip(paths[1:], found[1:], strict=True):
        _, here, there = np.intersect1d(found[0].places, teacher.places, return_indices=True)
        if (found[0].folds[here] != teacher.folds[there]).any():
            raise DataError(f"{path}: made of another recipe than {paths[0].name}; make both anew from this one")
    return found


def taught(model_data: ModelData, teachers: Sequence[Teacher], prompts: Sequence[Prompt]) -> Taught | None:
    """What a recipe's teachers say of these prompts of another model, or of one's own; None where they know too few."""
    knowing = [teacher for teacher in teachers if teacher.knows(prompts)]
    lessons = [teacher.lesson(model_data, prompts) for teacher in knowing]
    found = [lesson for lesson in lessons if lesson is not None]
    if not found:
        return None
    held = np.ma.masked_invalid([teacher.scores_of(prompts) for teacher in knowing])
    return Taught(knowing[0].folds_of(prompts), held.mean(axis=0).filled(np.nan).astype(np.float32), found)


def _anchors(
    model_data: ModelData, prompt: Prompt, longest: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Where tokens of a prompt's last turn stand, whatever they are called in a vocabulary, and which they are, (k,).

    A token of the text stands at the byte at which it ends, counted from the text's first; the turn's last ones, the
    template's, at -1, -2 and so on.

    Args:
        longest: of the text's tokens so many at most.
    """
    turn, ends = model_data.token_ends(prompt)
    start = turn.find(prompt.text.encode())
    inside = np.flatnonzero((ends > start) & (ends <= start + len(prompt.text.encode()))) if start >= 0 else ends[:0]
    inside = inside[:longest]
    tail = np.arange(max(len(ends) - _TAIL, 0), len(ends))
    offsets = np.concatenate([ends[inside] - start, tail - len(ends)])
    return offsets.astype(np.int32), np.concatenate([inside, tail]).astype(np.intp)
