"""Training the kinds: which kind of request a prompt is, told from what the gate attends to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from finesteer_local.steering import ContrastiveGate, Gate, Kinds
from finesteer_local.steering.kinds import sigmoid
from finesteer_local.training.data import FORMS, KindOf, Prompt, drawn_by
from finesteer_local.training.gate_data import GateData
from finesteer_local.training.gates import GateFit, log_odds
from finesteer_local.training.model_data import Turns
from finesteer_local.training.progress import Progress

Array = NDArray[np.float32]
Bools = NDArray[np.bool_]

FOLDS = 4
LEAST = 24
"""Prompts that a kind must have; one with fewer is left out."""
HIDDEN = 512
"""Units of the head's hidden layer, with which it tells .05 more of the kinds than without (docs/experiments.md)."""
EPOCHS = 20
BATCH = 256
LEARNING_RATE = 2e-3  # the greatest; it rises to this and falls to nothing (one cycle)
WEIGHT_DECAY = 0.1
DROPOUT = 0.3
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
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Kinds, KindsFit] | None:
    """A head that tells the kinds of `table` beside `gate`; None where too few prompts have one.

    A network of one hidden layer, on the states that the gate's heads attend to. What such networks give on prompts
    that they did not learn from calibrates it (Platt scaling).

    Args:
        gate: trained on these prompts.
        turns, prompts: those that need intervention.
        table: the kinds; one with fewer than `LEAST` prompts is left out.
        slope, offset: make the gate's score the log-odds that a prompt needs intervention.
        seed: of the networks.
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
    kinds = tuple(each.kind for each in table)
    logits, held = np.zeros(belongs.shape), np.zeros(len(rows), bool)
    for fold in range(FOLDS):
        out, learnt = (folds == fold).all(axis=1), (folds != fold).all(axis=1)
        if out.any():
            tried = Kinds(kinds, slope=slope, offset=offset, **_head(x[learnt], belongs[learnt], seed))
            logits[out], held[out] = tried.logits(x[out]), True
        progress(fold + 1, FOLDS + 1)
    head = _head(x, belongs, seed)
    scale, shift = _calibrated(logits[held], belongs[held])
    progress(FOLDS + 1, FOLDS + 1)
    head["weight"], head["bias"] = head["weight"] * scale, head["bias"] * scale + shift
    made = Kinds(kinds, slope=slope, offset=offset, **{name: each.astype(np.float32) for name, each in head.items()})
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


def _head(x: Array, belongs: Bools, seed: int) -> dict[str, Array]:
    """The arrays of `Kinds` that give log-odds for attended states (n, n_embd), learnt from `belongs` (n, C)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs, labels = torch.from_numpy(x), torch.from_numpy(belongs.astype(np.float32))
        hidden, output = nn.Linear(x.shape[1], HIDDEN), nn.Linear(HIDDEN, belongs.shape[1])
        network = nn.Sequential(nn.Dropout(DROPOUT), hidden, nn.ReLU(), nn.Dropout(DROPOUT), output)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * -(-len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(x)), BATCH):
                loss = functional.binary_cross_entropy_with_logits(network(inputs[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return {
        "hidden_weight": np.ascontiguousarray(hidden.weight.detach().numpy().T),
        "hidden_bias": hidden.bias.detach().numpy(),
        "weight": np.ascontiguousarray(output.weight.detach().numpy().T),
        "bias": output.bias.detach().numpy(),
    }


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
