"""Beginnings of prompts that many requests share, kept outside of the sequences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finesteer_local.runtime.batch.pieces import common_cut

_SEEN = 1024  # beginnings that are remembered without their keys and values


@dataclass(frozen=True)
class Prefix:
    """A beginning, the cuts in which it was read, and its keys and values."""

    tokens: list[int]
    cuts: list[int]  # the last one is its length
    data: NDArray[np.uint8]


class PrefixStore:
    """Keeps beginnings that were met twice, `limit` bytes at most; the one that was not used for longest goes first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def find(self, prompt: Sequence[int], ends: Sequence[int], limit: int) -> Prefix | None:
        """The longest kept beginning that serves `prompt`, which is cut at `ends`, of at most `limit` tokens."""
        best = None
        for key, prefix in self._kept.items():
            n_tokens = len(key)
            if n_tokens > min(limit, len(prompt) - 1) or (best and n_tokens <= len(best.tokens)):
                continue
            if common_cut(prefix.tokens, prefix.cuts, prompt, ends) == n_tokens:
                best = prefix
        if best:
            self._kept.move_to_end(tuple(best.tokens))
        return best

    def offer(self, tokens: Sequence[int], cuts: Sequence[int], save: Callable[[], NDArray[np.uint8]]) -> None:
        """Tell of a beginning that was read just now; `save` copies its keys and values."""
        key = tuple(tokens)
        if key in self._kept:
            return
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
            return
        data = save()
        if data.nbytes > self._limit:
            return
        self._kept[key] = Prefix(list(tokens), list(cuts), data)
        self._size += data.nbytes
        while self._size > self._limit:
            _, old = self._kept.popitem(last=False)
            self._size -= old.data.nbytes

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0
