"""Attention probes, one a fold, trained side by side: what a contrastive gate is folded from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from finesteer_local.steering import spans

FOLDS = 8
HEADS = 16
WINDOW = 64
"""Tokens of the stretches over which the gate pools, beside the whole turn."""
_PIECE = 1024  # tokens that are pooled at once
_TINY = 1e-30  # weights of a span that sum to less have lost digits

Span = tuple[int, int]  # tokens of a turn: the first, and the one behind the last


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

    @torch.no_grad()
    def part(self, folds: torch.Tensor) -> Probes:
        """The probes of some folds, copied."""
        made = Probes(len(self.weight), self.window, len(folds))
        for name in ("query", "value"):
            of = getattr(self, name).unflatten(1, (-1, HEADS))[:, folds]
            getattr(made, name).copy_(of.flatten(1))
        made.last.copy_(self.last[:, folds])
        made.bias.copy_(self.bias[folds])
        return made

    @classmethod
    @torch.no_grad()
    def joined(cls, parts: Sequence[Probes]) -> Probes:
        """The probes of several modules in one, in their order."""
        made = cls(len(parts[0].weight), parts[0].window, sum(len(part.bias) for part in parts))
        for name in ("query", "value", "last"):
            getattr(made, name).copy_(torch.cat([getattr(part, name) for part in parts], dim=1))
        made.bias.copy_(torch.cat([part.bias for part in parts]))
        return made

    @torch.no_grad()
    def towards(self, other: Probes, way: float) -> Probes:
        """Probes whose weights lie this share of the way from these to the other's."""
        made = Probes(len(self.weight), self.window, len(self.bias))
        for mine, theirs, between in zip(self.parameters(), other.parameters(), made.parameters(), strict=True):
            between.copy_(torch.lerp(mine, theirs, way))
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
        member = torch.zeros(len(bounds), len(kept))  # not numpy's: MKL's last bits depend on where an array begins
        for row, (start, stop) in zip(member.numpy(), bounds, strict=True):
            row[start:stop] = 1
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
