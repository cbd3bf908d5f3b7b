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
from finesteer_local.training.precision import fast_dtype
from finesteer_local.training.progress import Progress
from finesteer_local.training.side_by_side import side_by_side

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
_TOGETHER = 64  # turns whose states are multiplied at once
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
    x = _attended(gate, turns, rows)  # (n, n_embd)
    folds = np.array([_folds(prompt) for prompt in prompts])  # (n, 2)
    kinds = tuple(each.kind for each in table)
    outs = [(folds == fold).all(axis=1) for fold in range(FOLDS)]
    learnt = [(folds != fold).all(axis=1) for fold, out in enumerate(outs) if out.any()]
    networks = [_Network(x[each], belongs[each], seed) for each in [*learnt, np.ones(len(rows), bool)]]
    heads = []
    with side_by_side(len(networks)) as threads:
        for found in threads.map(_Network.learn, networks):
            heads.append(found)
            progress(len(heads), len(networks))
    head = heads.pop()
    logits, held = np.zeros(belongs.shape), np.any(outs, axis=0)
    for out, each in zip((out for out in outs if out.any()), heads, strict=True):
        logits[out] = Kinds(kinds, slope=slope, offset=offset, **each).logits(x[out])
    scale, shift = _calibrated(logits[held], belongs[held])
    head["weight"], head["bias"] = head["weight"] * scale, head["bias"] * scale + shift
    made = Kinds(kinds, slope=slope, offset=offset, **{name: each.astype(np.float32) for name, each in head.items()})
    forms = np.array([prompt.form for prompt in prompts])
    return made, _fit(sigmoid(logits[held] * scale + shift), belongs[held], table, forms[held])


def _attended(gate: ContrastiveGate, turns: Turns, rows: Sequence[int]) -> Array:
    """Of each of these turns the mean of its standardised states, by the gate's attention, where it finds most,
    (n, n_embd)."""
    heads = np.concatenate([gate.query, gate.value_weight], axis=1)
    found = []
    for at in range(0, len(rows), _TOGETHER):
        states = [turns[i] for i in rows[at : at + _TOGETHER]]
        x = gate.standardised(np.concatenate(states))
        ends = np.cumsum(list(map(len, states)))[:-1]
        # Not `gate.summary`: it gives a turn in pieces what it gives the whole to the last bit, and is slow for that.
        for each, summary in zip(np.split(x, ends), np.split(x @ heads, ends), strict=True):
            start, stop, weights = gate.attention(summary)
            found.append(weights @ each[start:stop])
    return np.array(found, np.float32)


def _folds(prompt: Prompt) -> tuple[int, int]:
    """The fold of what a prompt asks, and that of its family; the same for one without."""
    asked = drawn_by(prompt.request or prompt.text) % FOLDS
    return asked, drawn_by(prompt.family) % FOLDS if prompt.family else asked


class _Network:
    """The arrays of `Kinds` that give log-odds for attended states (n, n_embd), learnt from `belongs` (n, C).

    Matrices are multiplied as this machine does it fastest; the weights and their steps are float32. Networks may
    learn beside each other in threads: none uses PyTorch's own generator after it was made.
    """

    def __init__(self, x: Array, belongs: Bools, seed: int) -> None:
        self._dtype = fast_dtype()
        self._x, self._labels = torch.from_numpy(x).to(self._dtype), torch.from_numpy(belongs.astype(np.float32))
        self._rng = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._hidden, self._output = nn.Linear(x.shape[1], HIDDEN), nn.Linear(HIDDEN, belongs.shape[1])

    def learn(self) -> dict[str, Array]:
        """Learn for all epochs; the arrays, by name."""
        optimizer = torch.optim.AdamW(
            [*self._hidden.parameters(), *self._output.parameters()], weight_decay=WEIGHT_DECAY, fused=True
        )
        steps = EPOCHS * -(-len(self._x) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.from_numpy(self._rng.permutation(len(self._x))), BATCH):
                hidden = self._linear(self._hidden, self._dropped(self._x[rows])).relu()
                logits = self._linear(self._output, self._dropped(hidden)).float()
                loss = functional.binary_cross_entropy_with_logits(logits, self._labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return {
            "hidden_weight": np.ascontiguousarray(self._hidden.weight.detach().numpy().T),
            "hidden_bias": self._hidden.bias.detach().numpy(),
            "weight": np.ascontiguousarray(self._output.weight.detach().numpy().T),
            "bias": self._output.bias.detach().numpy(),
        }

    def _linear(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, layer.weight.to(self._dtype), layer.bias.to(self._dtype))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        # Drawing the numbers took half of the time with PyTorch's dropout; a byte of each will do.
        drawn = np.frombuffer(bytearray(self._rng.bytes(x.numel())), np.uint8).reshape(x.shape)
        keep = torch.from_numpy(drawn) >= round(DROPOUT * 256)
        return x * keep.to(x.dtype).div_(1 - DROPOUT)


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
