"""Which way of reading prompts is fastest here: llama.cpp's, or 8 bits in PyTorch (int8_reader.py).

Both are timed once on a few of the prompts, and their states compared; the answer is kept in the cache directory. A run
that goes on, or another of the same model, reads as the first did.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from finesteer_local import paths
from finesteer_local.errors import FineSteerError, ModelError
from finesteer_local.runtime.harvest import EXPAND_FROM, Harvester, Reader, differ, reader_of
from finesteer_local.runtime.packing import Request
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.training.data import spread
from finesteer_local.training.int8_reader import Int8Reader

_SAMPLE = 40  # prompts by which the ranges of activations are told
_TIMED = 96  # prompts that both read
_LONGEST = 128  # tokens of each
_CLOSE = 0.1
"""Relative difference of states that still serves, the median. A prompt read in a batch and alone differs by .016 on
SmolLM2 at mid depth, 8 bits by .045, and a gate learns the same from both (docs/experiments.md)."""


def fast_reader(llama: SteeredLlama, layer: int, requests: Sequence[Request]) -> Reader:
    """The reader for these requests at one layer: the faster one where there is enough to read."""
    if not isinstance(llama, SteeredLlama) or llama.offloads or llama.lora_path or llama.kv_overrides:
        return reader_of(llama, [layer])
    if sum(len(request.tokens) for request in requests) < EXPAND_FROM:
        return Harvester(llama, [layer])
    file = paths.cache_dir() / "readers.json"
    known: dict[str, bool] = {}
    with contextlib.suppress(OSError, ValueError):
        read = json.loads(file.read_text(encoding="utf-8"))
        known = read if isinstance(read, dict) else {}
    model = [llama.identity.fingerprint, Path(llama.model_path).stat().st_size, layer]
    versions = [version("llama-cpp-python"), torch.__version__]
    key = json.dumps([*model, *versions, platform.processor() or platform.machine(), torch.get_num_threads()])
    if known.get(key) is False:
        return Harvester(llama, [layer])
    try:
        reader = Int8Reader(Path(llama.model_path), layer, spread(requests, _SAMPLE))
    except ModelError:
        return Harvester(llama, [layer])
    if key not in known:
        own = Harvester(llama, [layer])
        known[key] = _wins(reader, own, [each for each in requests if len(each.tokens) <= _LONGEST])
        # An answer that cannot be kept costs the seconds of asking again.
        with contextlib.suppress(FineSteerError, OSError), paths.atomic_write(file) as temporary:
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
        if not known[key]:
            return own
        own.close()
    return reader


def _wins(reader: Reader, own: Reader, requests: Sequence[Request]) -> bool:
    """Whether `reader` is faster than `own` and gives nearly the same states."""
    timed = [Request(each.tokens, len(each.tokens) - 1) for each in spread(requests, _TIMED)]
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
