"""Finds the fastest way of reading prompts here: llama.cpp's, or PyTorch in 8 bits or bfloat16 (torch_reader.py).

A layer in each precision is timed, then the quicker one and llama.cpp on a few of the prompts, and their states
compared; the answer is kept in the cache directory. A run that goes on, or another of the same model, reads as the
first did.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from finesteer_local.errors import ModelError
from finesteer_local.runtime.harvest import EXPAND_FROM, Reader, differ
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.small_cache import SmallCache
from finesteer_local.training.data import spread
from finesteer_local.training.lower_layers import PRECISIONS, quicker
from finesteer_local.training.precision import choice_key
from finesteer_local.training.torch_reader import TorchReader

SAMPLE = 120
"""Prompts by which 8 bits are told the ranges of activations; some of them both ways read."""
_TIMED, _LONGEST = 40, 128  # prompts that are timed, and the tokens of each
_CLOSE = 0.1
"""Relative difference of states that still serves, the median. A prompt read in a batch and alone differs by .016 on
SmolLM2 at mid depth, 8 bits by .045 to .065, from which a gate learns the same, and bfloat16 by .025
(docs/experiments.md)."""

_LLAMA_CPP = "llama.cpp"
_choices = SmallCache("readers.json")
"""By `_key`, what won: `_LLAMA_CPP` or one of `PRECISIONS`. Anything else, as earlier versions kept, is found anew."""


def fast_reader(llama: TrainableModel, layer: int, sample: Sequence[StatesRequest], n_tokens: float) -> Reader:
    """What reads many prompts at one layer fastest.

    Args:
        sample: some of the prompts, by which 8 bits are told the ranges of activations, and which both ways
            are tried on.
        n_tokens: that there are to read; few are read by llama.cpp without asking.
    """
    own = llama.reader([layer])
    if not llama.plain_gguf:
        return own
    path, key = Path(llama.model_path), _key(llama, layer)
    kept = _choices.get(key)
    if n_tokens < EXPAND_FROM or kept == _LLAMA_CPP:
        return own
    known = kept in PRECISIONS
    try:
        precision = kept if known else quicker(path, layer)
        reader = TorchReader(path, layer, precision, sample)
    except ModelError:
        return own
    wins = known or _wins(reader, own, sample)
    if not known:
        own.close()
        _choices.keep(key, precision if wins else _LLAMA_CPP)
    return reader if wins else own


def _key(llama: TrainableModel, layer: int) -> str:
    return choice_key(llama, layer, torch.backends.cpu.get_cpu_capability())


def _wins(reader: Reader, own: Reader, requests: Sequence[StatesRequest]) -> bool:
    """Whether `reader` is faster than `own` and gives nearly the same states."""
    short = [each for each in requests if len(each.tokens) <= _LONGEST]
    timed = [StatesRequest(each.tokens, len(each.tokens) - 1) for each in spread(short, _TIMED)]
    if not timed:
        return False
    found, seconds = [], []
    for each in (reader, own):
        list(each.harvest(timed[:8]))  # the first request also pays for setting up
        started = time.monotonic()
        states = dict(each.harvest(timed))
        seconds.append(time.monotonic() - started)
        found.append(np.stack([states[i] for i in range(len(timed))]))
    return seconds[0] < seconds[1] and differ(*found) < _CLOSE
