"""Reads prompts with the lower layers in PyTorch, where that is faster than llama.cpp and gives the same states."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finesteer_local.errors import PromptError
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.packing import Batch, Plan, StatesRequest
from finesteer_local.training.data import spread
from finesteer_local.training.lower_layers import LowerLayers, Precision, causal
from finesteer_local.training.side_by_side import side_by_side

BATCH = 1024  # tokens: fewer leave more of the time to Python and to small products, and many more gain nothing
_SEQUENCES = 1 << 30
_SAMPLE = 1024  # tokens of which the ranges of activations are taken


class TorchReader(Reader):
    """Reads hidden states of the GGUF model at `path` at one layer; see `lower_layers`.

    Args:
        sample: typical requests, by which 8 bits are told the ranges of activations.

    Raises:
        ModelError: the model cannot be read this way.
    """

    def __init__(self, path: Path, layer: int, precision: Precision, sample: Sequence[StatesRequest]) -> None:
        self.layers = [layer]
        mean = sum(len(request.tokens) for request in sample) / len(sample)
        typical = spread(sample, max(round(_SAMPLE / mean), 1))  # from all over them
        tokens = np.concatenate([np.asarray(request.tokens, np.int32) for request in typical])[: 2 * _SAMPLE]
        self._model = LowerLayers(path, layer, precision, tokens.tolist())

    def harvest(
        self, requests: Sequence[StatesRequest], known: Callable[[int], bool] = lambda index: False
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Read every request, in the order that shares most; see `Reader`."""
        if any(not 0 <= request.first < len(request.tokens) for request in requests):
            raise PromptError("an empty prompt or answer has no hidden states")
        plan = Plan(requests, n_tokens=BATCH, n_sequences=_SEQUENCES)
        n_past, past = len(plan.root), None
        if n_past:
            _, past = self._model.read(plan.root.tolist(), self._model.places(np.arange(n_past), causal(n_past)))

        def rows(batch: Batch) -> NDArray[np.float32]:
            sees = np.concatenate([np.ones((len(batch.tokens), n_past), np.bool_), _seen(batch)], 1)
            states, _ = self._model.read(batch.tokens, self._model.places(np.array(batch.positions), sees), past)
            return np.asarray(states.numpy(), np.float32)

        wanted = (batch for batch in plan.batches() if not all(known(read.request) for read in batch.reads))
        for batch, found in _side_by_side(rows, wanted):
            for index, at in batch.reads:
                yield index, found[at][None]

    def close(self) -> None:
        """The layers go with the reader."""


def _side_by_side(
    rows: Callable[[Batch], NDArray[np.float32]], batches: Iterator[Batch]
) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
    """What `rows` gives for every batch, in their order, as many at once as PyTorch has threads.

    Each is computed by one thread: a batch is too small for several to share. Two threads on one batch are 1.1 times
    as fast as one, on a batch each 1.5 times as fast as that (docs/experiments.md).
    """
    n_threads = torch.get_num_threads()
    waiting: deque[tuple[Batch, Future[NDArray[np.float32]]]] = deque()
    with side_by_side(n_threads) as threads:
        while True:
            for batch in islice(batches, n_threads + 1 - len(waiting)):
                waiting.append((batch, threads.submit(rows, batch)))
            if not waiting:
                return
            batch, future = waiting.popleft()
            yield batch, future.result()


def _seen(batch: Batch) -> NDArray[np.bool_]:
    """Which tokens of the batch each sees, (n, n): those of all its sequences, up to itself."""
    member = np.zeros((len(batch.tokens), batch.n_sequences), np.float32)
    counts = [len(sequences) for sequences in batch.sequences]
    member[np.repeat(np.arange(len(counts)), counts), [each for ids in batch.sequences for each in ids]] = 1
    positions = np.array(batch.positions)
    shared = member @ member.T == member.sum(1)[:, None]
    return np.asarray(shared & (positions[:, None] >= positions))
