"""Packing prompts into batches in which every beginning that prompts share stands once.

Sorted by their tokens, the prompts are the leaves of a tree; a batch is a part of that tree, read depth first. A token
belongs to the sequences of all prompts below it (llama.cpp: several `seq_id` a token), so a unified cache gives each
prompt exactly its own past. The plan follows from the requests alone: the same data is always batched alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class StatesRequest(NamedTuple):
    """Tokens to read; the hidden states of those from `first` on are wanted."""

    tokens: Sequence[int] | Tokens
    first: int


class Read(NamedTuple):
    """Where the hidden states of one request are found."""

    request: int  # its index
    rows: NDArray[np.intp]  # rows of the batch, one for every token from `first` on


@dataclass
class Batch:
    """Tokens to decode together, after the root that all prompts share."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)  # of each token; the root belongs to all of them
    reads: list[Read] = field(default_factory=list)
    n_sequences: int = 0


def shared_length(a: Tokens, b: Tokens) -> int:
    """How many tokens two prompts have in common from their start."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    return int(differ.argmax()) if differ.any() else n


class Plan:
    """How `requests` are batched.

    Args:
        n_tokens: tokens of a full batch. One is larger where a single prompt is, or where closing it would read again
            more shared tokens than it saves.
        n_sequences: prompts with an end of their own in one batch, at most.
        shared: whether the model's memory can be shared between sequences; without it every batch is one request.

    Attributes:
        root: tokens with which all prompts begin, none of them asked for; decoded before the first batch.
    """

    def __init__(
        self, requests: Sequence[StatesRequest], *, n_tokens: int, n_sequences: int, shared: bool = True
    ) -> None:
        self.n_tokens, self.n_sequences, self.shared = n_tokens, n_sequences, shared
        self._tokens = [np.asarray(request.tokens, np.int32) for request in requests]
        self._first = [request.first for request in requests]
        # Big-endian bytes compare as the tokens do; Python's sort is stable.
        self._order = sorted(range(len(requests)), key=lambda i: self._tokens[i].astype(">i4").tobytes())
        self.root = self._tokens[self._order[0]][: self._root()] if requests else np.empty(0, np.int32)
        self.n_cells = len(self.root) + n_tokens + max(map(len, self._tokens), default=0)
        """Cells of the cache that the largest batch may need."""

    def _root(self) -> int:
        if not self.shared or len(self._order) < 2:  # one prompt alone is read in one go
            return 0
        outermost = self._tokens[self._order[0]], self._tokens[self._order[-1]]
        return min(shared_length(*outermost), *self._first)

    def batches(self) -> Iterator[Batch]:
        """The batches in the order in which they are decoded; each expects the root alone before it."""
        root = len(self.root)
        batch, path, before = Batch(), [-1] * root, self.root  # path: rows of the tokens of the prompt before
        for index in self._order:
            tokens = self._tokens[index]
            shared = shared_length(before, tokens)
            if batch.reads and self._is_full(batch, len(tokens) - shared, shared - root):
                yield batch
                batch, path, before, shared = Batch(), [-1] * root, self.root, root
            ends = shared < len(tokens)  # with tokens of its own
            if ends and (not batch.reads or shared < len(before)):  # else it goes on where the one before ends
                self._branch(batch, path[root:shared])
            path = path[:shared]
            for position in range(shared, len(tokens)):
                path.append(len(batch.tokens))
                batch.tokens.append(int(tokens[position]))
                batch.positions.append(position)
                batch.sequences.append([batch.n_sequences - 1])
            batch.reads.append(Read(index, np.array(path[self._first[index] :], np.intp)))
            before = tokens
        if batch.reads:
            yield batch

    def _is_full(self, batch: Batch, n_new: int, n_shared: int) -> bool:
        if not self.shared or batch.n_sequences == self.n_sequences:
            return True
        n = len(batch.tokens) + n_new
        return n > self.n_tokens and (n_shared <= n_new or len(self.root) + n > self.n_cells)

    @staticmethod
    def _branch(batch: Batch, shared: list[int]) -> None:
        """Add a sequence, whose past is the root and the rows `shared`."""
        for row in shared:
            batch.sequences[row].append(batch.n_sequences)
        batch.n_sequences += 1
