"""Training the gate: SCS as the paper has it, and the contrastive attention probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from finesteer_local.judges.statistics import auroc
from finesteer_local.steering import ContrastiveGate, Gate, SubspaceGate, spans
from finesteer_local.training.data import FOREIGN, FORMS, PLAIN
from finesteer_local.training.model_data import Turns

Array = NDArray[np.float32]

FOLDS = 8
HEADS = 16
EPOCHS = 16
BATCH = 32
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
DROPOUT = 0.2
SMOOTHING = 0.02
OPENINGS = 0.05
"""A contrastive gate may open on this share of those held-out contrast prompts that come as users send them. Half of
these are written in the words of harmful ones, and ordinary prompts open the gate less than half as often."""
SENT = (PLAIN, FOREIGN)
"""Forms that users send. Wrapped and long prompts are hard on purpose, and would move the threshold."""
RAMP = 0.25  # log-odds from the threshold to a gate that is wide open
SUBSPACE_RANK = 64
WINDOW = 64
"""Tokens of the stretches over which the gate pools, beside the whole turn."""
MOST = 0.75
"""A stretch counts as a request if it holds this share of the request's tokens (or of `WINDOW`, if it is longer)."""
STRETCHES = 8
"""A probe learns from at most so many stretches of a page that hold no request that needs intervention."""

Span = tuple[int, int]  # tokens of a turn: the first, and the one behind the last


@dataclass(frozen=True)
class GateFit:
    """How well a gate tells held-out prompts apart."""

    auroc: float
    recall: float  # share of held-out prompts that need intervention on which it opens
    openings: float  # share of held-out contrast prompts on which it opens
    forms: dict[str, dict[str, float]] = field(default_factory=dict)
    """`recall` and `openings` by the prompts' form. The probe never saw a wrapped one's wrapper, nor a page's text."""
    slope: float = 1.0
    offset: float = 0.0
    """`slope score + offset` is the log-odds of held-out prompts: a score says how likely one needs intervention."""


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
    needs = np.arange(len(inside) + len(outside)) < len(inside)
    return gate, gate_fit(gate, np.r_[inside, outside], needs)


def gate_fit(
    gate: Gate, scores: NDArray[np.floating[Any]], needs: NDArray[np.bool_], forms: NDArray[np.str_] | None = None
) -> GateFit:
    """What the gate's scores of held-out prompts, (n,), say of it.

    Args:
        needs: whether each prompt needs intervention, (n,).
        forms: of the prompts, each one of `data.FORMS`, (n,).
    """
    slope, offset = log_odds(np.asarray(scores, np.float32), needs.astype(float))
    opened = np.array([gate.value(float(score)) > 0 for score in scores])

    def shares(of: NDArray[np.bool_]) -> dict[str, float]:
        kinds = {"recall": of & needs, "openings": of & ~needs}
        return {name: float(opened[rows].mean()) for name, rows in kinds.items() if rows.any()}

    by_form = {} if forms is None else {form: shares(forms == form) for form in FORMS if (forms == form).any()}
    return GateFit(
        auroc=auroc(scores[needs], scores[~needs]) or 0.0,
        recall=float(opened[needs].mean()),
        openings=float(opened[~needs].mean()),
        forms=by_form,
        slope=slope,
        offset=offset,
    )


def log_odds(scores: Array, labels: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Slope, not negative, and offset that make scores the log-odds of their labels, 1 and 0 (Platt scaling)."""
    found = LogisticRegression().fit(scores[:, None], labels)
    return max(float(found.coef_[0, 0]), 0.0), float(found.intercept_[0])


class Probes(nn.Module):
    """One attention probe a fold, side by side; see `ContrastiveGate` for what each computes."""

    def __init__(self, n_embd: int, window: int = WINDOW) -> None:
        super().__init__()
        self.window = window
        self.query = nn.Parameter(torch.randn(n_embd, FOLDS * HEADS) * 1e-3)
        self.value = nn.Parameter(torch.zeros(n_embd, FOLDS * HEADS))
        self.last = nn.Parameter(torch.zeros(n_embd, FOLDS))
        self.bias = nn.Parameter(torch.zeros(FOLDS))

    def forward(
        self,
        x: torch.Tensor,
        lengths: Sequence[int],
        keep: torch.Tensor | None = None,
        pooled_over: Sequence[Sequence[Span]] | None = None,
    ) -> torch.Tensor:
        """Scores (n, FOLDS) of turns that lie end to end.

        Args:
            x: standardised hidden states, (n_tokens, n_embd).
            lengths: tokens of each turn.
            keep: factors of the dimensions, (n_embd, 1).
            pooled_over: of each turn the spans of which the best counts; as the gate has them without.
        """
        if pooled_over is None:
            pooled_over = [spans(n, self.window) for n in lengths]
        weight = torch.cat([self.query, self.value, self.last], dim=1)
        kept = x @ (weight if keep is None else keep * weight)  # (n_tokens, ...)
        logits, values, last = torch.split(kept, [FOLDS * HEADS, FOLDS * HEADS, FOLDS], dim=1)
        ends = torch.tensor(lengths).cumsum(0)
        found = [(row, start, stop) for row, each in enumerate(pooled_over) for start, stop in each]
        of, first, stop = torch.tensor(found).T  # each (n_spans,): the turn, and where in it a span begins and ends
        first, stop = (at + ends[of] - torch.tensor(lengths)[of] for at in (first, stop))
        size = stop - first
        span = torch.repeat_interleave(torch.arange(len(of)), size)  # of each row below
        rows = torch.arange(len(span)) - (size.cumsum(0) - size)[span] + first[span]  # a token for every span it is in
        pooled = _pooled(logits[rows], values[rows], span, len(of)).reshape(-1, FOLDS, HEADS).sum(dim=2)
        best = torch.full((len(lengths), FOLDS), -torch.inf)
        best = best.scatter_reduce(0, of[:, None].expand_as(pooled), pooled, "amax")
        return best + last[ends - 1] + self.bias


def _pooled(logits: torch.Tensor, values: torch.Tensor, span: torch.Tensor, n: int) -> torch.Tensor:
    """`sum_t softmax_t(logits) values` over each of `n` spans; `span` says to which a row belongs, (n_rows,)."""
    index = span[:, None].expand_as(logits)
    top = torch.full((n, logits.shape[1]), -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    weights = (logits - top[span]).exp()
    totals = torch.zeros(n, logits.shape[1]).index_add(0, span, weights)
    return torch.zeros(n, logits.shape[1]).index_add(0, span, weights * values) / totals


def fit_contrastive_gate(
    positive: Turns,
    contrast: Turns,
    families: Sequence[str] = (),
    forms: Sequence[str] = (),
    requests: Sequence[Span | None] = (),
    *,
    seed: int,
    graded: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ContrastiveGate, GateFit]:
    """Train an attention probe by cross-validation and calibrate its threshold on the scores of held-out turns.

    The gate is the mean of the folds' probes. Every turn is scored once by the probe that has not seen it, nor any turn
    of its family; the gate opens above the score that `OPENINGS` of the held-out contrast turns exceed, counting those
    that come as users send them.

    Args:
        families: for every positive, then every contrast turn the family of its wrapper or page, "" without one; ()
            for none.
        forms: in the same order, one of `data.FORMS`; () where all are plain.
        requests: in the same order, which tokens of a page are its request, (0, 0) for none; None for a turn that is
            a request as a whole. () where no turn is a page. The stretches of a page are learnt one by one, since a
            softmax over all of them teaches little: a stretch that holds a request that needs intervention should open
            the gate, every other one should not.
        graded: open by degrees, from the score that twice `OPENINGS` exceed to the score that `OPENINGS` do. For what
            can be done by halves: an answer can lean to the facts a little, but not be refused a little.
    """
    data = _Standardised([positive, contrast])
    labels = np.r_[np.ones(len(positive)), np.zeros(len(contrast))].astype(np.float32)
    folds = folds_of(labels, np.array(families or [""] * len(labels)), seed)
    form = np.array(forms or [PLAIN] * len(labels))
    examples = _examples(data.lengths, labels, requests or [None] * len(labels), seed)
    probes = _train(data, examples, folds, seed, progress)
    held_out = _score(probes, data)[np.arange(len(labels)), folds]
    sent = held_out[(labels == 0) & np.isin(form, SENT)]
    calibrated = sent if len(sent) else held_out[labels == 0]
    low, wide = (float(q) for q in np.quantile(calibrated, [1 - (2 if graded else 1) * OPENINGS, 1 - OPENINGS]))
    gate = ContrastiveGate(
        mean=data.mean,
        scale=data.scale,
        query=_array(probes.query),
        value_weight=_array(probes.value / FOLDS),
        last_weight=_array(probes.last.mean(dim=1)),
        bias=probes.bias.mean().item(),
        low=low,
        high=max(wide, low + RAMP),
        window=WINDOW,
    )
    return gate, gate_fit(gate, held_out, labels == 1, form)


def folds_of(labels: NDArray[np.float32], families: NDArray[np.str_], seed: int) -> NDArray[np.intp]:
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
    """Turns, standardised and clipped as the gate will, in batches."""

    def __init__(self, turns: Sequence[Turns]) -> None:
        self._turns = [
            part for group in turns for part in np.split(group.states[: group.offsets[-1]], group.offsets[1:-1])
        ]
        self.lengths = np.concatenate([np.diff(group.offsets) for group in turns])
        count = sum(len(group.states) for group in turns)
        total = np.sum([_blockwise_sum(group.states) for group in turns], axis=0)
        self.mean = (total / count).astype(np.float32)
        squares = np.sum([_blockwise_sum(group.states, self.mean) for group in turns], axis=0)
        self.scale = (np.sqrt(squares / count) + 1e-6).astype(np.float32)

    def batch(self, examples: Sequence[Example]) -> tuple[torch.Tensor, list[int], list[list[Span]]]:
        """States of some examples end to end, (n_tokens, n_embd), the tokens of each, and what to pool over."""
        mean, scale, clip = torch.from_numpy(self.mean), torch.from_numpy(self.scale), ContrastiveGate.clip
        parts, pooled_over = [], []
        for row, stretch, *_ in examples:
            turn = self._turns[row]
            if stretch is None:
                parts.append(turn)
                pooled_over.append(spans(len(turn), WINDOW))
            else:  # the prompt's last token counts beside every stretch
                parts.append(np.concatenate([turn[slice(*stretch)], turn[-1:]]))
                pooled_over.append([(0, stretch[1] - stretch[0])])
        x = torch.from_numpy(np.concatenate(parts)).float().sub_(mean).div_(scale).clamp_(-clip, clip)
        return x, list(map(len, parts)), pooled_over


class Example(NamedTuple):
    """What a probe learns from: a turn, or one stretch of it."""

    row: int
    stretch: Span | None
    label: float
    weight: float


def _examples(lengths: NDArray[np.intp], labels: Array, requests: Sequence[Span | None], seed: int) -> list[Example]:
    """One example a turn, or one for every stretch of a page: those with its request, and the others, weigh together
    as much as a turn each. Turns of both labels weigh alike."""
    rng = np.random.default_rng(seed)
    balance = float((labels == 0).sum() / max((labels == 1).sum(), 1))
    found = []
    for row, (n, label, request) in enumerate(zip(lengths, labels, requests, strict=True)):
        weight = balance if label else 1.0
        stretches = spans(int(n), WINDOW)[1:]
        if request is None or not stretches:
            found.append(Example(row, None, float(label), weight))
            continue
        start, stop = request
        needed = max(MOST * min(stop - start, WINDOW), 1)
        asking = [each for each in stretches if min(stop, each[1]) - max(start, each[0]) >= needed]
        others = [each for each in stretches if stop <= each[0] or each[1] <= start]
        others = [others[i] for i in rng.permutation(len(others))[:STRETCHES]]
        found += [Example(row, each, float(label), weight / len(asking)) for each in asking]
        found += [Example(row, each, 0.0, 1.0 / len(others)) for each in others]
    return found


def _blockwise_sum(states: NDArray[np.float16], mean: Array | None = None) -> NDArray[np.float64]:
    """Column sums, or sums of squared deviations from `mean`, without loading everything at once."""
    total = np.zeros(states.shape[1], np.float64)
    for start in range(0, len(states), 8192):
        block = states[start : start + 8192].astype(np.float64)
        total += block.sum(axis=0) if mean is None else ((block - mean) ** 2).sum(axis=0)
    return total


def _train(
    data: _Standardised,
    examples: Sequence[Example],
    folds: NDArray[np.intp],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Probes:
    """Probes, the one of each fold trained on the rows that are not in it."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    probes = Probes(len(data.mean))
    optimizer = torch.optim.AdamW(probes.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(examples) // BATCH)
    warm_up = max(0.1, 2 / steps)  # torch divides by the warm-up's steps less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=warm_up)
    targets = torch.tensor([each.label for each in examples])[:, None] * (1 - 2 * SMOOTHING) + SMOOTHING
    # A turn counts for every probe that may see it.
    seen = torch.from_numpy(folds)[[each.row for each in examples], None] != torch.arange(FOLDS)
    weights = seen * torch.tensor([each.weight for each in examples])[:, None] * FOLDS / (FOLDS - 1)  # (n, FOLDS)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(examples))
        for rows in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            x, lengths, pooled_over = data.batch([examples[i] for i in rows])
            keep = (torch.rand(x.shape[1], 1) > DROPOUT) / (1 - DROPOUT)
            scores = probes(x, lengths, keep, pooled_over)
            losses = functional.binary_cross_entropy_with_logits(
                scores, targets[rows].expand_as(scores), weights[rows], reduction="none"
            )
            optimizer.zero_grad()
            losses.mean(dim=0).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        progress(epoch + 1, EPOCHS)
    return probes


@torch.no_grad()
def _score(probes: Probes, data: _Standardised) -> Array:
    """Scores of every turn by every fold's probe, (n, FOLDS)."""
    turns = [Example(row, None, 0.0, 0.0) for row in range(len(data.lengths))]
    batches = (data.batch(turns[start : start + BATCH]) for start in range(0, len(turns), BATCH))
    return np.concatenate([probes(x, lengths).numpy() for x, lengths, _ in batches])


def _array(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
