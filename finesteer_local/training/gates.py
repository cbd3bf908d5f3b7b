"""Training the gate: SCS as the paper has it, and the contrastive attention probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from finesteer_local.steering import ContrastiveGate, Gate, SubspaceGate
from finesteer_local.training.harvest import Turns

Array = NDArray[np.float32]

FOLDS = 4
HEADS = 8
EPOCHS = 8
BATCH = 32
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1.0
DROPOUT = 0.4
SMOOTHING = 0.02
OPENINGS = 0.04
"""Share of held-out contrast prompts on which a contrastive gate may open. Many of them are hard on purpose: plain ones
open it less than half as often."""
SUBSPACE_RANK = 64


@dataclass(frozen=True)
class GateFit:
    """How well a gate tells held-out prompts apart."""

    auroc: float
    recall: float  # share of held-out prompts that need intervention on which it opens
    openings: float  # share of held-out contrast prompts on which it opens
    recall_unseen: float | None = None  # recall on wrapped prompts whose wrapper family the probe never saw
    openings_unseen: float | None = None  # openings on contrast prompts in such families


def fit_subspace_gate(
    positive: Array, held_positive: Array, held_contrast: Array, *, eps: float = 0.05
) -> tuple[SubspaceGate, GateFit]:
    """SCS (arXiv 2604.15488) from hidden states of prompts' last tokens, each (n, n_embd)."""
    mean = positive.mean(axis=0)
    _, _, components = np.linalg.svd(positive - mean, full_matrices=False)
    basis = np.ascontiguousarray(components[: min(SUBSPACE_RANK, len(components))].T, np.float32)
    blank = SubspaceGate(mean, basis, np.zeros(1, np.float32), eps=eps)

    def scores(states: Array) -> Array:
        return np.array([blank.score(h, states[:0]) for h in states], np.float32)

    inside, outside = scores(held_positive), scores(held_contrast)
    gate = SubspaceGate(mean, basis, np.sort(inside), eps=eps)
    return gate, _fit(gate, inside, outside)


def _fit(gate: Gate, positive: Array, contrast: Array) -> GateFit:
    labels = np.r_[np.ones(len(positive)), np.zeros(len(contrast))]
    opened = np.array([gate.value(float(s)) > 0 for s in np.r_[positive, contrast]])
    return GateFit(
        auroc=float(roc_auc_score(labels, np.r_[positive, contrast])),
        recall=float(opened[labels == 1].mean()),
        openings=float(opened[labels == 0].mean()),
    )


class Probe(nn.Module):
    """`x_last'u + sum_k sum_t softmax_t(q_k'x_t) v_k'x_t + b` over standardised hidden states."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(n_embd, HEADS) * 1e-3)
        self.value = nn.Parameter(torch.zeros(n_embd, HEADS))
        self.last = nn.Parameter(torch.zeros(n_embd))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of turns x (n, n_tokens, n_embd), padded at the end where mask (n, n_tokens) is False."""
        weights = (x @ self.query).masked_fill(~mask[..., None], -1e9).softmax(dim=1)
        last = x[torch.arange(len(x)), mask.sum(dim=1) - 1]
        return (weights * (x @ self.value)).sum(dim=(1, 2)) + last @ self.last + self.bias


def fit_contrastive_gate(
    positive: Turns,
    contrast: Turns,
    families: Sequence[str] = (),
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ContrastiveGate, GateFit]:
    """Train an attention probe by cross-validation and calibrate its threshold on the scores of held-out turns.

    The gate is the mean of the folds' probes. Every turn is scored once by the probe that has not seen it, nor any turn
    of its family; the gate opens above the score that `OPENINGS` of the held-out contrast turns exceed.

    Args:
        families: for every positive, then every contrast turn the family of its wrapper, "" without one; () for none.
    """
    data = _Standardised([positive, contrast])
    labels = np.r_[np.ones(len(positive)), np.zeros(len(contrast))].astype(np.float32)
    wrapped = np.array(families or [""] * len(labels))
    folds = _folds(labels, wrapped, seed)
    held_out = np.zeros(len(labels), np.float32)
    probes = []
    for fold in range(FOLDS):
        train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        probe = _train(data, labels, train, seed + fold)
        held_out[held] = _score(probe, data, held)
        probes.append(probe)
        progress(fold + 1, FOLDS)
    inside, outside = held_out[labels == 1], held_out[labels == 0]
    low = float(np.quantile(outside, 1 - OPENINGS))
    with torch.no_grad():
        gate = ContrastiveGate(
            mean=data.mean,
            scale=data.scale,
            query=torch.cat([p.query for p in probes], dim=1).numpy(),
            value_weight=(torch.cat([p.value for p in probes], dim=1) / FOLDS).numpy(),
            last_weight=torch.stack([p.last for p in probes]).mean(dim=0).numpy(),
            bias=float(torch.stack([p.bias for p in probes]).mean()),
            low=low,
            high=low + 0.25,
        )
    fit = _fit(gate, inside, outside)
    if families:
        opened = held_out > low
        fit = replace(
            fit,
            recall_unseen=_share(opened[(labels == 1) & (wrapped != "")]),
            openings_unseen=_share(opened[(labels == 0) & (wrapped != "")]),
        )
    return gate, fit


def _share(opened: NDArray[np.bool_]) -> float | None:
    return float(opened.mean()) if len(opened) else None


def _folds(labels: NDArray[np.float32], families: NDArray[np.str_], seed: int) -> NDArray[np.intp]:
    """A fold for every row, each with its share of both labels, and whole families in one fold."""
    rng = np.random.default_rng(seed)
    folds = np.zeros(len(labels), np.intp)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero((labels == label) & (families == "")))
        folds[rows] = np.arange(len(rows)) % FOLDS
    for i, family in enumerate(rng.permutation(sorted(set(families) - {""}))):
        folds[families == family] = i % FOLDS
    return folds


class _Standardised:
    """Turns, standardised and clipped as the gate will, in padded batches."""

    def __init__(self, turns: Sequence[Turns]) -> None:
        self._turns = [(group, i) for group in turns for i in range(len(group))]
        self.lengths = np.concatenate([np.diff(group.offsets) for group in turns])
        count = sum(len(group.states) for group in turns)
        total = np.sum([_blockwise_sum(group.states) for group in turns], axis=0)
        self.mean = (total / count).astype(np.float32)
        squares = np.sum([_blockwise_sum(group.states, self.mean) for group in turns], axis=0)
        self.scale = (np.sqrt(squares / count) + 1e-6).astype(np.float32)

    def batches(
        self, rows: Sequence[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], torch.Tensor, torch.Tensor]]:
        """For each group of rows: the rows, their turns (n, n_tokens, n_embd) and the mask (n, n_tokens)."""
        clip = ContrastiveGate.clip
        for group in rows:
            longest = int(self.lengths[group].max())
            x = np.zeros((len(group), longest, len(self.mean)), np.float32)
            mask = np.zeros((len(group), longest), bool)
            for row, i in enumerate(group):
                turns, index = self._turns[i]
                states = (turns[index] - self.mean) / self.scale
                x[row, : len(states)] = np.clip(states, -clip, clip)
                mask[row, : len(states)] = True
            yield group, torch.from_numpy(x), torch.from_numpy(mask)


def _blockwise_sum(states: NDArray[np.float16], mean: Array | None = None) -> NDArray[np.float64]:
    """Column sums, or sums of squared deviations from `mean`, without loading everything at once."""
    total = np.zeros(states.shape[1], np.float64)
    for start in range(0, len(states), 8192):
        block = states[start : start + 8192].astype(np.float64)
        total += block.sum(axis=0) if mean is None else ((block - mean) ** 2).sum(axis=0)
    return total


def _train(data: _Standardised, labels: Array, rows: NDArray[np.intp], seed: int) -> Probe:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    probe = Probe(len(data.mean))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(rows) // BATCH)
    warm_up = max(0.1, 2 / steps)  # torch divides by the warm-up's steps less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=warm_up)
    targets = torch.from_numpy(labels)
    weight = torch.tensor(float((labels[rows] == 0).sum() / max((labels[rows] == 1).sum(), 1)))
    for _ in range(EPOCHS):
        # Turns of like length share a batch: little padding. The noise keeps the batches from being the same each time.
        order = rows[np.argsort(data.lengths[rows] * (1 + 0.1 * rng.random(len(rows))))]
        groups = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        rng.shuffle(groups)
        for group, x, mask in data.batches(groups):
            keep = (torch.rand(len(x), 1, x.shape[2]) > DROPOUT) / (1 - DROPOUT)
            wanted = targets[torch.from_numpy(group)] * (1 - 2 * SMOOTHING) + SMOOTHING
            loss = functional.binary_cross_entropy_with_logits(probe(x * keep, mask), wanted, pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return probe


@torch.no_grad()
def _score(probe: Probe, data: _Standardised, rows: NDArray[np.intp]) -> Array:
    order = np.argsort(data.lengths[rows])
    scores = np.zeros(len(rows), np.float32)
    groups = [order[i : i + 64] for i in range(0, len(order), 64)]
    for group, (_, x, mask) in zip(groups, data.batches([rows[g] for g in groups]), strict=True):
        scores[group] = probe(x, mask).numpy()
    return scores
