"""Training the answer's gate: a probe on the running mean of hidden states of the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from finesteer_local.judges.statistics import auroc
from finesteer_local.steering import AnswerGate
from finesteer_local.steering.answer_gate import highest
from finesteer_local.training.data import Prompt, TrainingData, drawn_by
from finesteer_local.training.effort import Deadline
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.own_answers import OwnAnswers, own_answers, prompts_to_answer

Array = NDArray[np.float32]

EVERY = 1
DECAY = 0.95
FIRST = 8
POINTS = (8, 16, 24, 32, 48, 64, 96, 128)
"""Tokens of an answer after which its running mean is an example; so is the one at its end."""
PENALTY = 3e-3  # scikit-learn's C: the inverse of the strength of the weights' penalty
FOLDS = 4
LEAST = 48
"""Answers of each kind that a gate needs: those that comply, and those to harmless prompts."""
TOUCHED = 0.002
"""At most this share of ordinary answers of `WHOLE` tokens may open the gate."""
WHOLE = 400
TAIL = 0.1
"""Share of the ordinary answers, those with the highest scores, from which the chance of higher ones is told."""
SOON = 32
USEFUL = 0.1
"""A gate that opens on less than this share of what it should open on is not worth reading every token for."""
_STEPS, _TOLERANCE = 300, 1e-3


@dataclass(frozen=True)
class AnswerGateFit:
    """How well the gate tells held-out answers apart; neither their prompts nor the prompts' families were seen."""

    answers: int  # from which it learnt
    complied: int  # of them: those that do what should not be done
    auroc: float  # of the highest score of an answer
    recall: float  # share of complying answers on which it opens
    soon: float  # within `SOON` tokens
    tokens: float | None  # median, of the answers on which it opens, after which it does
    refusals: float | None  # share of answers that decline, of prompts that need intervention, on which it opens
    openings: float  # share of answers to harmless prompts on which it opens

    @property
    def useful(self) -> bool:
        """Whether the gate catches enough to be part of a profile."""
        return self.recall >= USEFUL


def learn_answer_gate(
    model_data: ModelData, data: TrainingData, layer: int, n: int, *, deadline: Deadline, keep: bool = False
) -> tuple[AnswerGate, AnswerGateFit] | None:
    """Let the model answer up to `n` prompts of `data`, and learn from its answers' states at `layer`.

    None where too few of its answers are of either kind, or where somebody who wants to keep what there is, without
    this gate, interrupts before there are enough; arguments as of `own_answers`.
    """
    asked = [each for each in prompts_to_answer(data, n) if model_data.fits(each.prompt)]
    try:
        answers = own_answers(model_data, asked, layer, every=EVERY, deadline=deadline, keep=keep)
    except KeyboardInterrupt:
        if not keep:
            raise
        return None
    return fit_answer_gate(
        answers, layer, progress=lambda done, total: model_data.progress("training the answers' gate", done, total)
    )


def fit_answer_gate(
    answers: OwnAnswers,
    layer: int,
    *,
    every: int = EVERY,
    decay: float = DECAY,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[AnswerGate, AnswerGateFit] | None:
    """A gate that tells complying answers from all others; None where there are fewer than `LEAST` of either.

    A logistic regression on running means, cross-validated: the gate is the mean of the folds' probes, each of which
    is tried on answers whose prompts, and families of prompts, it has not seen. The threshold is what a whole ordinary
    answer exceeds with a probability of `TOUCHED` (`_threshold`).
    """
    complies, needs = answers.complies, answers.needs
    if complies.sum() < LEAST or (~needs).sum() < LEAST:
        return None
    turns = [answers.states[i] for i in range(len(answers.states))]
    step = decay**every
    first = max(FIRST // every, 1)  # readings
    examples, of = _examples(turns, step, every)
    folds = np.array([_fold(each.prompt) for each in answers.asked])
    weight: NDArray[Any] = np.zeros(turns[0].shape[1], np.float32)
    bias = 0.0
    traces: list[Array] = [np.empty(0, np.float32)] * len(turns)
    for fold in range(FOLDS):
        learnt = folds[of] != fold
        w, b = _regression(examples[learnt], of[learnt], complies)
        weight, bias = weight + w / FOLDS, bias + b / FOLDS
        for i in np.flatnonzero(folds == fold):
            traces[i] = running_mean((turns[i] @ w + b)[:, None], step)[:, 0]
        progress(fold + 1, FOLDS)
    threshold = _threshold([traces[i] for i in np.flatnonzero(~needs)], first, every)
    gate = AnswerGate(
        layer=layer, weight=weight, bias=bias, decay=decay, threshold=threshold, first=first * every, every=every
    )
    return gate, _fit(answers, traces, gate)


def running_mean(x: Array, step: float) -> Array:
    """The bias-corrected exponential mean of readings (n, d) along the first axis, as `AnswerGate` has it."""
    means, mean = np.empty_like(x), np.zeros_like(x[:1])
    for i, reading in enumerate(x):
        mean = step * mean + (1 - step) * reading
        means[i] = mean[0] / (1 - step ** (i + 1))
    return means


def _examples(turns: Sequence[Array], step: float, every: int) -> tuple[Array, NDArray[np.intp]]:
    """Running means (n, n_embd) at `POINTS` and at the end of every answer, and to which answer each belongs."""
    found, of = [], []
    for i, turn in enumerate(turns):
        if len(turn):
            readings = sorted({*(point // every for point in POINTS if every <= point <= len(turn) * every), len(turn)})
            found.append(running_mean(turn, step)[np.array(readings) - 1])
            of += [i] * len(readings)
    return np.concatenate(found), np.array(of)


def _regression(x: Array, of: NDArray[np.intp], complies: NDArray[np.bool_]) -> tuple[Array, float]:
    """Weights (n_embd,) and bias of a logistic regression; answers count alike, and so do both kinds of them."""
    labels = complies[of]
    weights = 1.0 / np.bincount(of)[of]
    weights *= np.where(labels, weights[~labels].sum() / weights[labels].sum(), 1.0)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    found = LogisticRegression(C=PENALTY, max_iter=_STEPS, tol=_TOLERANCE).fit(
        (x - mean) / scale, labels, sample_weight=weights * len(x) / weights.sum()
    )
    weight = (found.coef_[0] / scale).astype(np.float32)
    return weight, float(found.intercept_[0] - weight @ mean)


def _fold(prompt: Prompt) -> int:
    """Of a prompt: that of its family, or of what it asks where it has none."""
    return drawn_by(prompt.family or prompt.request or prompt.text) % FOLDS


def _threshold(traces: Sequence[Array], first: int, every: int) -> float:
    """The score that a whole ordinary answer exceeds with a probability of `TOUCHED`.

    A few hundred answers do not show what one of 500 does, nor are they `WHOLE` tokens long. So the highest scores'
    tail is taken for exponential (the peaks over the quantile 1 - `TAIL`: a generalised Pareto distribution of shape 0,
    which is on the safe side of what is bounded), and a whole answer for as many independent ones as it is longer.
    """
    peaks = np.array([highest(trace, first) for trace in traces if len(trace)])
    longer = max(WHOLE / (float(np.mean([len(trace) for trace in traces])) * every), 1.0)
    start = float(np.quantile(peaks, 1 - TAIL))
    excess = peaks[peaks > start] - start
    scale = float(excess.mean()) if len(excess) else 0.0
    return start + scale * float(np.log(TAIL * longer / TOUCHED))


def _fit(answers: OwnAnswers, traces: Sequence[Array], gate: AnswerGate) -> AnswerGateFit:
    complies, needs = answers.complies, answers.needs
    first = gate.first // gate.every
    peaks = np.array([highest(trace, first) for trace in traces])
    opened = np.full(len(traces), np.inf)  # tokens after which it opens
    for i, trace in enumerate(traces):
        above = np.flatnonzero(trace[first - 1 :] > gate.threshold)
        if len(above):
            opened[i] = (above[0] + first) * gate.every
    caught, refused = opened[complies], opened[needs & ~complies]
    return AnswerGateFit(
        answers=len(traces),
        complied=int(complies.sum()),
        auroc=auroc(peaks[complies], peaks[~complies]) or 0.0,
        recall=float(np.isfinite(caught).mean()),
        soon=float((caught <= SOON).mean()),
        tokens=float(np.median(caught[np.isfinite(caught)])) if np.isfinite(caught).any() else None,
        refusals=float(np.isfinite(refused).mean()) if len(refused) else None,
        openings=float(np.isfinite(opened[~needs]).mean()),
    )
