"""Training the gate: SCS as the paper has it, and the contrastive attention probe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from finesteer_local import paths
from finesteer_local.judges.statistics import auroc
from finesteer_local.steering import ContrastiveGate, Gate, SubspaceGate, spans
from finesteer_local.training.data import FOREIGN, FORMS, PLAIN
from finesteer_local.training.model_data import Turns
from finesteer_local.training.precision import fast_dtype
from finesteer_local.training.probes import FOLDS, HEADS, WINDOW, Probes, Span
from finesteer_local.training.side_by_side import side_by_side
from finesteer_local.training.teacher import Taught

Array = NDArray[np.float32]

GROUPS = 2
"""Folds are trained in so many groups, a thread each where there are as many; they wait once an epoch."""
EPOCHS = 16
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
TAUGHT_EPOCHS = 8
"""Who begins with what a teacher knows (teacher.py) needs half as many, and smaller steps, to keep it."""
TAUGHT_RATE = 1e-3
TAUGHT_FULL = 4000  # from fewer examples the steps are smaller by as much
WAYS = (0.0, 0.3, 0.5, 0.7, 1.0)
"""How far such probes go from what they began with to what they learnt: as far as does best on what is held out. What a
teacher of the model's own kind gave them is better than what they make of it from a part of its prompts; weights
between the two are often better than both (WiSE-FT, arXiv 2109.01903)."""
COMPARED = 4000  # prompts that tell which is best
SOFT = 0.5
"""So much of what a probe learns of a prompt is what the teacher held of it; the rest is its label."""
DROPOUT = 0.2
SMOOTHING = 0.02
OPENINGS = 0.05
"""A contrastive gate may open on this share of those held-out contrast prompts that come as users send them. Half of
these are written in the words of harmful ones, and ordinary prompts open the gate less than half as often."""
SENT = (PLAIN, FOREIGN)
"""Forms that users send. Wrapped and long prompts are hard on purpose, and would move the threshold."""
RAMP = 0.25  # log-odds from the threshold to a gate that is wide open
SUBSPACE_RANK = 64
MOST = 0.75
"""A stretch counts as a request if it holds this share of the request's tokens (or of `WINDOW`, if it is longer)."""
STRETCHES = 8
"""A probe learns from at most so many stretches of a page that hold no request that needs intervention."""
_BLOCK = 1024  # tokens that are standardised at once: their float32 stays in the processor's cache
_ROWS = 128
"""Tokens of a batch are made up to a multiple: for every new number of them oneDNN writes a program, which takes ten
times as long as a product in bfloat16."""


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


def fit_contrastive_gate(
    positive: Turns,
    contrast: Turns,
    families: Sequence[str] = (),
    forms: Sequence[str] = (),
    requests: Sequence[Span | None] = (),
    *,
    seed: int,
    graded: bool = False,
    taught: Taught | None = None,
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
        taught: what a teacher says of these turns, in the same order: the probes begin with its own, and learn what
            it held of each turn beside the label.
    """
    data = _Standardised([positive, contrast])
    labels = np.r_[np.ones(len(positive)), np.zeros(len(contrast))].astype(np.float32)
    folds = folds_of(labels, np.array(families or [""] * len(labels)), seed) if taught is None else taught.folds
    form = np.array(forms or [PLAIN] * len(labels))
    examples = _examples(data.lengths, labels, requests or [None] * len(labels), seed)
    start = _start(data, taught)
    probes = _train(data, examples, folds, seed, progress, taught, start)
    if start is not None:
        probes = _between(start, probes, data, labels, folds, seed)
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
    """Turns, standardised and clipped as the gate will, in batches.

    Attributes:
        mean, scale: of all tokens, (n_embd,).
    """

    def __init__(self, turns: Sequence[Turns]) -> None:
        self._groups = turns
        self.lengths = np.concatenate([np.diff(group.offsets) for group in turns])
        self.mean, self.scale = _mean_and_scale([group.states[: group.offsets[-1]] for group in turns])

    @cached_property
    def _turns(self) -> list[torch.Tensor]:
        """The states as they are, (n_tokens, n_embd) each."""
        return [
            torch.from_numpy(part)
            for group in self._groups
            for part in np.split(group.states[: group.offsets[-1]], group.offsets[1:-1])
        ]

    def standardised(self, states: torch.Tensor) -> torch.Tensor:
        """`states` as the gate will see them, in float32."""
        mean, scale, clip = torch.from_numpy(self.mean), torch.from_numpy(self.scale), ContrastiveGate.clip
        return states.float().sub_(mean).div_(scale).clamp_(-clip, clip)

    def batch(self, turns: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """Standardised states of some turns end to end, (n_tokens, n_embd), and the tokens of each."""
        parts = [self._turns[row] for row in turns]
        return self.standardised(torch.cat(parts)), list(map(len, parts))

    def tokens(self, rows: NDArray[np.intp]) -> Array:
        """Standardised states of single tokens, (turn, token) each, (n, n_embd)."""
        return self.standardised(torch.stack([self._turns[turn][token] for turn, token in rows])).numpy()

    def kept(self, dtype: torch.dtype) -> _Kept:
        """All of them, to be learnt from epoch after epoch; in half precision, so that they take no more than before.

        They lie in a file that has no name, as what they were made of does (`Turns.joined`).
        """
        half = dtype if dtype == torch.bfloat16 else torch.float16
        shape = int(self.lengths.sum()), len(self.mean)
        with tempfile.TemporaryFile(dir=paths.ensure_dir(paths.work_dir())) as file:
            states = torch.from_numpy(np.memmap(file, np.int16, "w+", shape=shape)).view(half)
        at = 0
        for group in self._groups:
            for block in torch.split(torch.from_numpy(group.states[: group.offsets[-1]]), _BLOCK):
                states[at : at + len(block)] = self.standardised(block)
                at += len(block)
        return _Kept(states, np.concatenate([[0], self.lengths.cumsum()]).tolist(), dtype)


@dataclass(frozen=True)
class _Kept:
    """Standardised states of all turns, (n_tokens, n_embd), in half precision, end to end."""

    states: torch.Tensor
    offsets: list[int]
    dtype: torch.dtype

    @cached_property
    def _nothing(self) -> torch.Tensor:
        return self.states.new_zeros(_ROWS, self.states.shape[1])

    def batch(self, examples: Sequence[Example]) -> tuple[torch.Tensor, list[int], list[list[Span]]]:
        """States of some examples end to end, then a few of nothing, (n_tokens, n_embd), the tokens of each example,
        and what to pool over."""
        parts: list[torch.Tensor] = []
        lengths: list[int] = []
        pooled_over: list[list[Span]] = []
        for row, stretch, *_ in examples:
            start, stop = self.offsets[row : row + 2]
            if stretch is None:
                parts.append(self.states[start:stop])
                lengths.append(stop - start)
                pooled_over.append(spans(stop - start, WINDOW))
            else:  # the prompt's last token counts beside every stretch
                parts += [self.states[start + stretch[0] : start + stretch[1]], self.states[stop - 1 : stop]]
                lengths.append(stretch[1] - stretch[0] + 1)
                pooled_over.append([(0, stretch[1] - stretch[0])])
        parts.append(self._nothing[: -sum(lengths) % _ROWS])
        return torch.cat(parts).to(self.dtype), lengths, pooled_over


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


def _mean_and_scale(parts: Sequence[NDArray[np.float16]]) -> tuple[Array, Array]:
    """Mean and deviation of each column over all rows of some arrays, without loading everything at once."""
    around = torch.from_numpy(parts[0][:_BLOCK]).float().mean(dim=0)  # digits would be lost around 0
    count, total, squares = (
        0,
        torch.zeros(len(around), dtype=torch.float64),
        torch.zeros(len(around), dtype=torch.float64),
    )
    for part in parts:
        for block in torch.split(torch.from_numpy(part), _BLOCK):
            apart = block.float().sub_(around)
            count += len(block)
            total += apart.sum(dim=0)
            squares += apart.square_().sum(dim=0)
    shift = total / count
    scale = (squares / count - shift.square()).clamp_(min=0).sqrt_() + 1e-6
    return (around + shift).float().numpy(), scale.float().numpy()


class _Steps(NamedTuple):
    """How probes learn."""

    epochs: int
    rate: float
    decay: float


class _Group:
    """The probes of some folds while they are trained, with those of other folds beside them in another thread.

    Args:
        targets: the probabilities to learn, (n_examples, 1).
        unseen: whether each probe may learn from each example, (n_examples, folds).
        probes: as they begin.
        seed: of the dimensions that are dropped, the same ones for every fold.
    """

    def __init__(
        self,
        data: _Kept,
        examples: Sequence[Example],
        targets: torch.Tensor,
        unseen: torch.Tensor,
        probes: Probes,
        steps: _Steps,
        seed: int,
    ) -> None:
        self._data, self._examples, self._targets, self.probes = data, examples, targets, probes
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.AdamW(
            self.probes.parameters(), lr=steps.rate, weight_decay=steps.decay, fused=True
        )
        n_steps = steps.epochs * -(-len(examples) // BATCH)
        warm_up = max(0.1, 2 / n_steps)  # torch divides by the warm-up's steps less one
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, steps.rate, total_steps=n_steps, pct_start=warm_up
        )
        # A turn counts for every probe that may see it.
        self._weights = unseen * torch.tensor([each.weight for each in examples])[:, None] * FOLDS / (FOLDS - 1)

    def epoch(self, order: NDArray[np.intp]) -> None:
        """Learn from all examples once, in this order."""
        for rows in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            x, lengths, pooled_over = self._data.batch([self._examples[i] for i in rows])
            keep = (torch.rand(x.shape[1], 1, generator=self._generator) > DROPOUT) / (1 - DROPOUT)
            scores = self.probes(x, lengths, keep, pooled_over)
            losses = functional.binary_cross_entropy_with_logits(
                scores, self._targets[rows].expand_as(scores), self._weights[rows], reduction="none"
            )
            self._optimizer.zero_grad()
            losses.mean(dim=0).sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()


def _train(
    data: _Standardised,
    examples: Sequence[Example],
    folds: NDArray[np.intp],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    taught: Taught | None = None,
    start: Probes | None = None,
) -> Probes:
    """Probes, the one of each fold trained on the rows that are not in it.

    Matrices are multiplied as this machine does it fastest; the weights and their steps are float32.
    """
    rng = np.random.default_rng(seed)
    kept = data.kept(fast_dtype())
    unseen = torch.from_numpy(folds)[[each.row for each in examples], None] != torch.arange(FOLDS)
    targets = _targets(examples, taught)
    begin, steps = start or _drawn(len(data.mean), seed), _steps(len(examples), start)
    parts = torch.split(torch.arange(FOLDS), FOLDS // GROUPS)
    groups = [_Group(kept, examples, targets, unseen[:, part], begin.part(part), steps, seed) for part in parts]
    with side_by_side(GROUPS) as threads:
        for epoch in range(steps.epochs):
            order = rng.permutation(len(examples))
            list(threads.map(lambda group, order=order: group.epoch(order), groups))
            progress(epoch + 1, steps.epochs)
    return Probes.joined([group.probes for group in groups])


def _start(data: _Standardised, taught: Taught | None) -> Probes | None:
    """What a teacher has the probes begin with; None without one, or where none is of use to this model."""
    return None if taught is None else taught.start(data.tokens, data.lengths)


def _between(
    start: Probes, learnt: Probes, data: _Standardised, labels: Array, folds: NDArray[np.intp], seed: int
) -> Probes:
    """Probes on the way from `start` to `learnt` that tell held-out turns apart best."""
    rows = np.random.default_rng(seed).permutation(len(labels))[:COMPARED]
    needs = labels[rows] == 1

    def held_out(probes: Probes) -> float:
        scores = _score(probes, data, rows.tolist())[np.arange(len(rows)), folds[rows]]
        return auroc(scores[needs], scores[~needs]) or 0.0

    return max((start.towards(learnt, way) for way in WAYS), key=held_out)


@torch.no_grad()
def _drawn(n_embd: int, seed: int) -> Probes:
    """Probes that know nothing."""
    probes = Probes(n_embd)
    drawn = torch.randn(n_embd, FOLDS, HEADS, generator=torch.Generator().manual_seed(seed))
    probes.query.copy_(1e-3 * drawn.flatten(1))
    return probes


def _targets(examples: Sequence[Example], taught: Taught | None) -> torch.Tensor:
    """The probability that each example is to have, (n_examples, 1)."""
    found = torch.tensor([each.label for each in examples]) * (1 - 2 * SMOOTHING) + SMOOTHING
    if taught is not None:
        held = torch.from_numpy(taught.scores)[[each.row for each in examples]].sigmoid()
        known = torch.tensor([each.stretch is None for each in examples]) & ~held.isnan()
        found = torch.where(known, (1 - SOFT) * found + SOFT * held, found)
    return found[:, None]


def _steps(n_examples: int, start: Probes | None) -> _Steps:
    if start is None:
        return _Steps(EPOCHS, LEARNING_RATE, WEIGHT_DECAY)
    return _Steps(TAUGHT_EPOCHS, TAUGHT_RATE * min(n_examples / TAUGHT_FULL, 1), 0.0)  # decay would forget


@torch.no_grad()
def _score(probes: Probes, data: _Standardised, rows: Sequence[int] | None = None) -> Array:
    """Scores of every turn, or of those that are named, by every fold's probe, (n, FOLDS): from float32, as the gate
    will."""
    rows = range(len(data.lengths)) if rows is None else rows
    batches = (data.batch(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))
    return np.concatenate([probes(x, lengths).numpy() for x, lengths in batches])


def _array(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
