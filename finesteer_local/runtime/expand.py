"""A model's weights in float32: for quantisations that llama.cpp's CPU kernels are slow for.

llama.cpp repacks Q4_0 and the K-quants for fast prompt processing; for Q4_1 and Q5_1 it multiplies row by row. Their
weights in float32 are the very same numbers, and many tokens at once run at more than three times the speed (SmolLM2
Q4_1, AVX-512; float16, bfloat16 and Q8_0 gain less). What differs is that activations are no longer rounded to 8 bits:
states move by 1.8 % (median, mid depth), as much as they do when a prompt is batched with other prompts.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from llama_cpp import llama_cpp

from finesteer_local import paths
from finesteer_local.errors import FineSteerError
from finesteer_local.gguf_file import DamagedGGUF, read_header
from finesteer_local.runtime.amx import without_amx
from finesteer_local.runtime.compat import new_model, set_fields
from finesteer_local.runtime.load import open_model
from finesteer_local.runtime.machine import has_accelerator
from finesteer_local.runtime.quiet import unlogged
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.runtime.tapped import TappedLlama

SLOW = frozenset({GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_1})
MAX_BYTES = 1 << 30
_MAX_ITEMS = 1 << 24
_PREFIX = "expanded-"
_ABANDONED = 24 * 3600  # seconds; no training on a model of this size takes so long


@contextmanager
def float32_copy(path: Path) -> Iterator[Path | None]:
    """A temporary copy of the model file at `path`, with its name; None where it does not help or there is no room.

    llama.cpp's own quantiser writes it (`llama_model_quantize`): metadata and tokenizer are the same.
    """
    if not _helps(path):
        yield None
        return
    try:
        cache = paths.ensure_dir(paths.cache_dir())
        _sweep(cache)
        folder = tempfile.TemporaryDirectory(dir=cache, prefix=_PREFIX)
    except (OSError, FineSteerError):
        yield None
        return
    with folder:
        copy = Path(folder.name) / path.name
        yield copy if requantise(path, copy, llama_cpp.LLAMA_FTYPE_ALL_F32) else None


def requantise(source: Path, target: Path, ftype: int) -> bool:
    """Write the model at `source` to `target` in another quantisation, one of llama.cpp's `LLAMA_FTYPE_...`, with
    llama.cpp's own quantiser (`llama_model_quantize`). Returns whether it could."""
    parameters = set_fields(llama_cpp.llama_model_quantize_default_params(), ftype=ftype, allow_requantize=True)
    with unlogged():
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    return bool(status == 0)


@contextmanager
def open_fast(path: str | Path, **options: Any) -> Iterator[SteeredLlama]:
    """`open_model` for reading thousands of prompts: from the float32 copy where that is faster, and closed at the end.

    Raises:
        ModelError: as for `open_model`.
    """
    offloads = options.get("n_gpu_layers", 0) != 0 and (bool(options.get("rpc")) or has_accelerator())
    changed = options.get("lora_path") or options.get("kv_overrides")
    with nullcontext() if offloads or changed else float32_copy(Path(path)) as copy:
        llama = open_model(copy or path, **options)
        try:
            yield llama
        finally:
            llama.close()


def expanded(llama: TappedLlama) -> Any:
    """The float32 copy of `llama`'s model (`compat.new_model`), in memory alone; None where it does not help."""
    if llama.offloads or llama.lora_path or llama.kv_overrides:
        return None
    with float32_copy(Path(llama.model_path)) as copy:
        if copy is None:
            return None
        in_memory = llama_cpp.LLAMA_LOAD_MODE_NONE  # the file goes
        params = set_fields(llama_cpp.llama_model_default_params(), n_gpu_layers=0, load_mode=in_memory)
        return new_model(copy, without_amx(params))


def _sweep(cache: Path) -> None:
    """Remove copies that a process left behind when it was killed."""
    for folder in cache.glob(f"{_PREFIX}*"):
        if time.time() - folder.stat().st_mtime > _ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)


def _helps(path: Path) -> bool:
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        tensors = read_header(path, max_items=_MAX_ITEMS).tensors.values()
    except (FineSteerError, OSError, DamagedGGUF, ValueError):
        return False  # who opens the model says what is wrong with it
    small = sum(4 * int(np.prod(tensor.shape)) for tensor in tensors) <= MAX_BYTES
    return small and any(tensor.kind in SLOW for tensor in tensors)
