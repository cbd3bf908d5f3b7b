"""Threads for what is too small for several of PyTorch's own to share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def side_by_side(n_tasks: int) -> Iterator[Executor]:
    """Runs `n_tasks` at once, as far as PyTorch has threads, each with an equal share of these."""
    n_threads = torch.get_num_threads()
    share = max(n_threads // n_tasks, 1)
    executor = ThreadPoolExecutor(min(n_threads, n_tasks), initializer=torch.set_num_threads, initargs=(share,))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # what a new thread starts with, too
