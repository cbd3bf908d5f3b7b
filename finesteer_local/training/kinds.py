"""Training the kinds: which kind of request a prompt is, told from what the gate attends to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.steering import ContrastiveGate, Gate, Kinds
from finesteer_local.steering.kinds import sigmoid
from finesteer_local.training.data import FORMS, KindOf, Prompt, TrainingData, drawn_by
from finesteer_local.training.gate_data import GateData
from finesteer_local.training.gates import GateFit, log_odds
from finesteer_local.training.model_data import ModelData, Turns
from finesteer_local.training.progress import Progress

Array = NDArray[np.float32]
Bools = NDArray[np.bool_]

FOLDS = 4
LEAST = 24
"""Prompts that a kind must have; one with fewer is left out."""
PENALTY = 0.02  # scikit-learn's C: the inverse of the strength of the weights' penalty
_STEPS, _TOLERANCE = 60, 1e-3
_BINS = 10  # of probabilities, for the calibration's error


@dataclass(frozen=True)
class KindsFit:
    """How well kinds of held-out prompts are told: neither their wrapper's family nor what they ask was seen."""

    first: float  # share of prompts whose kind is the likeliest
    among_two: float  # or the second
    calibration: float  # mean distance of the likeliest kind's probability from how often it holds
    forms: dict[str, float] = field(default_factory=dict)  # `first` by the prompts' form
    kinds: dict[str, float] = field(default_factory=dict)  # by kind


def fit_kinds(
    gate: ContrastiveGate,
    turns: Turns,
    prompts: Sequence[Prompt],
    table: Sequence[KindOf],
    *,
    slope: float,
    offset: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Kinds, KindsFit] | None:
    """A head that tells the kinds of `table` beside `gate`; None where too few prompts have one.

    One logistic regression a kind, on the states that the gate's heads attend to. What the regressions give on prompts
    that they did not learn from calibrates them (Platt scaling).

    Args:
        gate: trained on these prompts.
        turns, prompts: those that need intervention.
        table: the kinds; one with fewer than `LEAST` prompts is left out.
        slope, offset: make the gate's score the log-odds that a prompt needs intervention.
    """
    belongs = np.array([[prompt.kind in each.of for each in table] for prompt in prompts])  # (n, C)
    kept = belongs.sum(axis=0) >= LEAST
    table, belongs = [each for each, keeps in zip(table, kept, strict=True) if keeps], belongs[:, kept]
    rows = np.flatnonzero(belongs.any(axis=1)).tolist()
    if len(table) < 2:
        return None
    prompts, belongs = [prompts[i] for i in rows], belongs[rows]
    x = np.stack([_attended(gate, turns[i]) for i in rows])  # (n, n_embd)
    folds = np.array([_folds(prompt) for prompt in prompts])  # (n, 2)
    logits, held = np.zeros(belongs.shape), np.zeros(len(rows), bool)
    for fold in range(FOLDS):
        out = (folds == fold).all(axis=1)
        weight, bias = _regressions(x[(folds != fold).all(axis=1)], belongs[(folds != fold).all(axis=1)])
        logits[out], held[out] = x[out] @ weight + bias, True
        progress(fold + 1, FOLDS + 1)
    weight, bias = _regressions(x, belongs)
    scale, shift = _calibrated(logits[held], belongs[held])
    progress(FOLDS + 1, FOLDS + 1)
    made = Kinds(
        kinds=tuple(each.kind for each in table),
        weight=np.ascontiguousarray(weight * scale, np.float32),
        bias=np.asarray(bias * scale + shift, np.float32),
        slope=slope,
        offset=offset,
    )
    forms = np.array([prompt.form for prompt in prompts])
    return made, _fit(sigmoid(logits[held] * scale + shift), belongs[held], table, forms[held])


def _attended(gate: ContrastiveGate, states: Array) -> Array:
    """The mean of the standardised states, by the gate's attention, where it finds most, (n_embd,)."""
    start, stop, weights = gate.attention(gate.summary(states))
    return np.asarray(weights @ gate.standardised(states[start:stop]), np.float32)


def _folds(prompt: Prompt) -> tuple[int, int]:
    """The fold of what a prompt asks, and that of its family; the same for one without."""
    asked = drawn_by(prompt.request or prompt.text) % FOLDS
    return asked, drawn_by(prompt.family) % FOLDS if prompt.family else asked


def _regressions(x: Array, belongs: Bools) -> tuple[Array, Array]:
    """Weights (n_embd, C) and biases (C,) of one logistic regression a kind."""
    fits = [LogisticRegression(C=PENALTY, max_iter=_STEPS, tol=_TOLERANCE).fit(x, each) for each in belongs.T]
    return np.stack([fit.coef_[0] for fit in fits], axis=1), np.array([fit.intercept_[0] for fit in fits])


def _calibrated(logits: NDArray[np.float64], belongs: Bools) -> tuple[Array, Array]:
    """Scales and shifts, each (C,), that make logits of held-out prompts log-odds."""
    scales, shifts = np.array([log_odds(each, holds) for each, holds in zip(logits.T, belongs.T, strict=True)]).T
    return scales, shifts


def _fit(
    probabilities: NDArray[np.float64], belongs: Bools, table: Sequence[KindOf], forms: NDArray[np.str_]
) -> KindsFit:
    order = np.argsort(-probabilities, axis=1)
    hits = np.take_along_axis(belongs, order, axis=1)  # whether the n-th likeliest kind is right
    first, top = hits[:, 0], probabilities.max(axis=1)
    bins = np.minimum((top * _BINS).astype(int), _BINS - 1)
    parts = [bins == i for i in range(_BINS) if (bins == i).any()]
    return KindsFit(
        first=float(first.mean()),
        among_two=float(hits[:, :2].any(axis=1).mean()),
        calibration=float(sum(abs(top[part].mean() - first[part].mean()) * part.mean() for part in parts)),
        forms={form: float(first[forms == form].mean()) for form in FORMS if (forms == form).any()},
        kinds={
            each.kind.name: float(first[belongs[:, i]].mean()) for i, each in enumerate(table) if belongs[:, i].any()
        },
    )


def train_kinds(
    table: Sequence[KindOf],
    gate: Gate,
    fit: GateFit | None,
    read: GateData | None,
    progress: Progress,
) -> tuple[Kinds, KindsFit] | None:
    """The kinds of a recipe that has some, beside the contrastive `gate` that was trained on what was `read`."""
    if not table or fit is None or read is None or not isinstance(gate, ContrastiveGate):
        return None
    return fit_kinds(
        gate,
        read.turns.parted(len(read.positive))[0],
        read.positive,
        table,
        slope=fit.slope,
        offset=fit.offset,
        progress=lambda done, total: progress("training the kinds", done, total),
    )


def with_kinds(profile: Profile, model_data: ModelData, data: TrainingData) -> tuple[Profile, KindsFit]:
    """An existing profile with the kinds of a recipe, trained beside its gate as it is.

    How likely a request needs intervention is told by the gate's scores on prompts that may have taught it, and so a
    little too surely; training anew tells it from held-out ones.

    Raises:
        DataError: the profile's gate cannot tell kinds, or the recipe has none, or too few prompts.
    """
    gate = profile.gate
    if not isinstance(gate, ContrastiveGate) or not data.kinds:
        raise DataError("kinds need a contrastive gate, and a recipe that names them")
    prompts = data.positive
    everything = model_data.turns([*prompts, *data.contrast], profile.gate_layer)
    turns = (everything[i] for i in range(len(everything)))
    scores = np.array([gate.score(turn[-1], gate.summary(turn)) for turn in turns], np.float32)
    slope, offset = log_odds(scores, (np.arange(len(everything)) < len(prompts)).astype(float))
    found = fit_kinds(gate, everything.parted(len(prompts))[0], prompts, data.kinds, slope=slope, offset=offset)
    if found is None:
        raise DataError(f"too few prompts have a kind: two kinds with {LEAST} prompts each are the least")
    return replace(profile, kinds=found[0]), found[1]
