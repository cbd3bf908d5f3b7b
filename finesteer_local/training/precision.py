"""In which precision this machine multiplies matrices fastest.

Processors with AMX, AVX512-BF16 or Arm's BF16 multiply bfloat16 up to seven times as fast as float32; others emulate it
and are slower.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.small_cache import SmallCache
from finesteer_local.training.memory import bound_caches

bound_caches()

_SHAPE = (256, 1024, 1024)  # n_tokens, n_in, n_out: between those of the models that are learnt through
_ROUNDS = 8
_CLEARLY = 0.75
"""bfloat16 keeps fewer digits, so it must take at most this share of float32's time."""

_TELLING = {"model name", "flags", "CPU part", "Features"}  # in Linux's list of processors, x86's and Arm's

_choices = SmallCache("precision.json")
"""By processor and version of PyTorch, whether bfloat16 wins."""


@cache
def processor() -> str:
    """What tells this machine's processor from others, and what it can: a home may be shared by many, or move.

    On Linux Python itself knows the family alone.
    """
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        first = ""
    told = sorted(line for line in first.splitlines() if line.partition(":")[0].strip() in _TELLING)
    own = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16] if told else platform.processor()
    return f"{platform.system()} {platform.machine()} {own}"


def choice_key(llama: TrainableModel, *others: str | int) -> str:
    """By which a choice between two ways of computing a model is kept: its file, what computes it, this machine, and
    what else the choice depends on."""
    model = [llama.identity.fingerprint, Path(llama.model_path).stat().st_size]
    versions = [version("llama-cpp-python"), torch.__version__]
    return json.dumps([*model, *versions, processor(), torch.get_num_threads(), *others])


@cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where matrices are multiplied clearly faster with it on this machine's processor, else float32.

    Timed once and remembered, so that a run that goes on computes as it began.
    """
    key = json.dumps([processor(), torch.__version__])
    wins = _choices.get(key)
    if not isinstance(wins, bool):
        wins = _seconds(torch.bfloat16) < _CLEARLY * _seconds(torch.float32)
        _choices.keep(key, wins)
    return torch.bfloat16 if wins else torch.float32


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """The best of some rounds: whatever else runs only makes them longer."""
    n_tokens, n_in, n_out = _SHAPE
    inputs, weight = torch.ones(n_tokens, n_in, dtype=dtype), torch.ones(n_out, n_in, dtype=dtype)
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        torch.nn.functional.linear(inputs, weight)
        found.append(time.perf_counter() - started)
    return min(found[1:])
