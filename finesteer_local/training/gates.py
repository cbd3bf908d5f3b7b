"""Training the gate: SCS as the paper has it, and the contrastive attention probe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional

from finesteer_local import paths
from finesteer_local.judges.statistics import auroc
from finesteer_local.steering import ContrastiveGate, Gate, SubspaceGate, spans
from finesteer_local.training.data import FOREIGN, FORMS, PLAIN
from finesteer_local.training.model_data import Turns
from finesteer_local.training.precision import fast_dtype
from finesteer_local.training.side_by_side import side_by_side

Array = NDArray[np.float32]

FOLDS = 8
HEADS = 16
GROUPS = 2
"""Folds are trained in so many groups, a thread each where there are as many; they wait once an epoch."""
EPOCHS = 16
BATCH = 64
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
_BLOCK = 1024  # tokens that are standardised at once: their float32 stays in the processor's cache
_PIECE = 1024  # tokens that are pooled at once
_ROWS = 128
"""Tokens of a batch are made up to a multiple: for every new number of them oneDNN writes a program, which takes ten
times as long as a product in bfloat16."""
_TINY = 1e-30  # weights of a span that sum to less have lost digits

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

    def __init__(self, n_embd: int, window: int = WINDOW, folds: int = FOLDS) -> None:
        super().__init__()
        self.window, self._widths = window, [folds * HEADS, folds * HEADS, folds]
        self.weight = nn.Parameter(torch.zeros(n_embd, sum(self._widths)))  # one product, and one step, for all
        self.bias = nn.Parameter(torch.zeros(folds))

    @property
    def query(self) -> torch.Tensor:
        """Of the heads, fold by fold, (n_embd, folds * HEADS)."""
        return torch.split(self.weight, self._widths, dim=1)[0]

    @property
    def value(self) -> torch.Tensor:
        """Of the same, (n_embd, folds * HEADS)."""
        return torch.split(self.weight, self._widths, dim=1)[1]

    @property
    def last(self) -> torch.Tensor:
        """What the last token adds, (n_embd, folds)."""
        return torch.split(self.weight, self._widths, dim=1)[2]

    @classmethod
    @torch.no_grad()
    def joined(cls, parts: Sequence[Probes]) -> Probes:
        """The probes of several modules in one, in their order."""
        made = cls(len(parts[0].weight), parts[0].window, sum(len(part.bias) for part in parts))
        for name in ("query", "value", "last"):
            getattr(made, name).copy_(torch.cat([getattr(part, name) for part in parts], dim=1))
        made.bias.copy_(torch.cat([part.bias for part in parts]))
        return made

    def forward(
        self,
        x: torch.Tensor,
        lengths: Sequence[int],
        keep: torch.Tensor | None = None,
        pooled_over: Sequence[Sequence[Span]] | None = None,
    ) -> torch.Tensor:
        """Scores (n, folds), float32, of turns that lie end to end.

        Args:
            x: standardised hidden states, (n_tokens, n_embd), in the type in which they are multiplied. What stands
                behind the last turn does not count.
            lengths: tokens of each turn.
            keep: factors of the dimensions, (n_embd, 1).
            pooled_over: of each turn the spans of which the best counts; as the gate has them without.
        """
        if pooled_over is None:
            pooled_over = [spans(n, self.window) for n in lengths]
        weight = self.weight if keep is None else keep * self.weight
        kept = x @ weight.to(x.dtype)  # (n_tokens, ...)
        pieces = list(_pieces(lengths))
        sizes = [sum(lengths[rows]) for rows in pieces]
        sizes[-1] += len(x) - sum(sizes)
        parts = torch.split(kept, sizes) if len(pieces) > 1 else [kept]
        found = [_scores(part, lengths[rows], pooled_over[rows]) for part, rows in zip(parts, pieces, strict=True)]
        return torch.cat(found) + self.bias


def _pieces(lengths: Sequence[int]) -> Iterator[slice]:
    """Turns that follow each other, with few tokens together: what it takes to pool grows with their square."""
    start = n_tokens = 0
    for i, n in enumerate(lengths):
        if n_tokens + n > _PIECE and n_tokens:
            yield slice(start, i)
            start, n_tokens = i, 0
        n_tokens += n
    yield slice(start, len(lengths))


def _scores(kept: torch.Tensor, lengths: Sequence[int], pooled_over: Sequence[Sequence[Span]]) -> torch.Tensor:
    """Scores (n, folds) of turns, but for the bias, from what the weights make of their tokens, (n_tokens, ...)."""
    ends = np.cumsum(lengths)
    starts = (ends - lengths).tolist()
    bounds = [(at + start, at + stop) for at, each in zip(starts, pooled_over, strict=True) for start, stop in each]
    last = torch.from_numpy(ends - 1)
    pooled: torch.Tensor
    added: torch.Tensor
    try:
        pooled, added = _Pooled.apply(kept, bounds, last)  # type: ignore[no-untyped-call]
    except FloatingPointError:
        pooled, added = _pooled_apart(kept, bounds, last)
    if len(bounds) == len(lengths):
        return pooled + added
    of = torch.repeat_interleave(torch.tensor(list(map(len, pooled_over))))
    best = torch.full_like(added, -torch.inf)
    return best.scatter_reduce(0, of[:, None].expand_as(pooled), pooled, "amax") + added


def _pooled_apart(kept: torch.Tensor, bounds: Sequence[Span], last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_Pooled` gives, span by span: slower, for logits however far apart."""
    folds = kept.shape[1] // (2 * HEADS + 1)
    logits, values, added = torch.split(kept.float(), [folds * HEADS, folds * HEADS, folds], dim=1)
    pooled = torch.stack([(logits[slice(*at)].softmax(0) * values[slice(*at)]).sum(0) for at in bounds])
    return pooled.reshape(-1, folds, HEADS).sum(dim=2), added[last]


class _Pooled(torch.autograd.Function):
    """`sum_k sum_t softmax_t(logits_k) values_k` over spans, (n_spans, folds), and what some tokens add, (n, folds).

    The sums over spans are products with a matrix of zeros and ones: faster than adding rows one by one, and nothing
    is read twice.

    Raises:
        FloatingPointError: a head's logits in one span lie so far below those in another that their exp is nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, kept: torch.Tensor, bounds: Sequence[Span], last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        folds = kept.shape[1] // (2 * HEADS + 1)
        n = folds * HEADS
        inside = np.zeros((len(bounds), len(kept)), np.float32)
        for row, (start, stop) in zip(inside, bounds, strict=True):
            row[start:stop] = 1
        member = torch.from_numpy(inside)
        values = kept[:, n : 2 * n].float()
        weights = kept[:, :n].to(torch.float32, copy=True)
        weights = weights.sub_(weights.amax(dim=0)).exp_()
        totals = member @ weights
        if not (totals > _TINY).all():
            raise FloatingPointError
        pooled = (member @ (weights * values)).div_(totals)
        ctx.dtype = kept.dtype
        ctx.save_for_backward(member, weights, values, totals, pooled, last)
        return pooled.reshape(-1, folds, HEADS).sum(dim=2), kept[last, 2 * n :].float()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        member, weights, values, totals, pooled, last = ctx.saved_tensors
        n = weights.shape[1]
        shares = gradients[0].repeat_interleave(HEADS, dim=1).div_(totals)
        both = member.T @ torch.cat([shares, shares * pooled], dim=1)  # (n_tokens, ...)
        found = torch.zeros(len(weights), 2 * n + gradients[1].shape[1], dtype=ctx.dtype)
        by_value = both[:, :n].mul_(weights)
        found[:, n : 2 * n] = by_value
        found[:, :n] = by_value.mul_(values).sub_(both[:, n:].mul_(weights))
        found[last, 2 * n :] = gradients[1].to(ctx.dtype)
        return found, None, None


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


class _Group:
    """The probes of some folds while they are trained, with those of other folds beside them in another thread.

    Args:
        unseen: whether each probe may learn from each example, (n_examples, folds).
        query: what the probes begin with, (n_embd, folds * HEADS).
        seed: of the dimensions that are dropped, the same ones for every fold.
    """

    def __init__(
        self, data: _Kept, examples: Sequence[Example], unseen: torch.Tensor, query: torch.Tensor, seed: int
    ) -> None:
        self._data, self._examples = data, examples
        self._generator = torch.Generator().manual_seed(seed)
        self.probes = Probes(data.states.shape[1], folds=unseen.shape[1])
        with torch.no_grad():
            self.probes.query.copy_(query)
        self._optimizer = torch.optim.AdamW(
            self.probes.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
        steps = EPOCHS * -(-len(examples) // BATCH)
        warm_up = max(0.1, 2 / steps)  # torch divides by the warm-up's steps less one
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, LEARNING_RATE, total_steps=steps, pct_start=warm_up
        )
        self._targets = torch.tensor([each.label for each in examples])[:, None] * (1 - 2 * SMOOTHING) + SMOOTHING
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
) -> Probes:
    """Probes, the one of each fold trained on the rows that are not in it.

    Matrices are multiplied as this machine does it fastest; the weights and their steps are float32.
    """
    rng = np.random.default_rng(seed)
    kept = data.kept(fast_dtype())
    unseen = torch.from_numpy(folds)[[each.row for each in examples], None] != torch.arange(FOLDS)
    query = 1e-3 * torch.randn(len(data.mean), FOLDS, HEADS, generator=torch.Generator().manual_seed(seed))
    parts = torch.split(torch.arange(FOLDS), FOLDS // GROUPS)
    groups = [_Group(kept, examples, unseen[:, part], query[:, part].flatten(1), seed) for part in parts]
    with side_by_side(GROUPS) as threads:
        for epoch in range(EPOCHS):
            order = rng.permutation(len(examples))
            list(threads.map(lambda group, order=order: group.epoch(order), groups))
            progress(epoch + 1, EPOCHS)
    return Probes.joined([group.probes for group in groups])


@torch.no_grad()
def _score(probes: Probes, data: _Standardised) -> Array:
    """Scores of every turn by every fold's probe, (n, FOLDS): from float32, as the gate will."""
    rows = range(len(data.lengths))
    batches = (data.batch(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))
    return np.concatenate([probes(x, lengths).numpy() for x, lengths in batches])


def _array(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
