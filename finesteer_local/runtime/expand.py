"""The first layers of a model again, in float32: for quantisations that llama.cpp's CPU kernels are slow for.

llama.cpp repacks Q4_0 and the K-quants for fast prompt processing; for Q4_1 and Q5_1 it multiplies row by row. Their
weights in float32 are the very same numbers, and the products run at more than three times the speed (SmolLM2 Q4_1,
AVX-512; float16, bfloat16 and Q8_0 gain less). What differs is that activations are no longer rounded to 8 bits: states
move by 1.8 % (median, mid depth), as much as they do when a prompt is batched with other prompts. The copy lives in
memory; its file is deleted once it is loaded.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from llama_cpp import _internals, llama_cpp

from finesteer_local import paths
from finesteer_local.errors import FineSteerError
from finesteer_local.gguf_file import DamagedGGUF, Header, TensorInfo, read_header
from finesteer_local.runtime.tapped import TappedLlama

SLOW = frozenset({GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_1})
ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})  # whose layers do not depend on how many there are
MAX_BYTES = 1 << 30
_MAX_ITEMS = 1 << 24


def expanded(llama: TappedLlama, n_layers: int) -> _internals.LlamaModel | None:
    """A model of the first `n_layers` layers of `llama`'s, its slow weights in float32; None where that does not help.

    A layer more is there, since llama.cpp computes the last one for tokens with logits only.
    """
    offloads = llama.model_params.n_gpu_layers != 0 and llama_cpp.llama_supports_gpu_offload()
    if platform.machine() not in ("x86_64", "AMD64") or offloads or llama.lora_path or llama.kv_overrides:
        return None
    path = Path(llama.model_path)
    with suppress(FineSteerError, OSError, DamagedGGUF, ValueError):
        header = read_header(path, max_items=_MAX_ITEMS)
        wanted = _wanted(header, n_layers)
        if wanted is None:
            return None
        with tempfile.TemporaryDirectory(dir=paths.ensure_dir(paths.cache_dir()), prefix="expanded-") as folder:
            file = Path(folder) / "model.gguf"
            _write(file, path, header, wanted, n_layers)
            params = llama_cpp.llama_model_default_params()
            params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # into memory: the file goes
            return _internals.LlamaModel(path_model=str(file), params=params, verbose=False)
    return None


def _wanted(header: Header, n_layers: int) -> dict[str, TensorInfo] | None:
    """The tensors of the first layers and one more; None where they are fast, unknown or too many."""
    architecture = header.values.get("general.architecture")
    n_blocks = header.values.get(f"{architecture}.block_count")
    if architecture not in ARCHITECTURES or not isinstance(n_blocks, int) or n_layers >= n_blocks:
        return None
    if any(key.startswith(f"{architecture}.") for key in header.arrays):  # one value a layer
        return None
    wanted = {}
    for name, tensor in header.tensors.items():
        block = name.split(".")[1] if name.startswith("blk.") else "0"
        if block.isdigit() and int(block) <= n_layers and name != "output.weight":  # no logits are wanted
            wanted[name] = tensor
    if not any(tensor.kind in SLOW for tensor in wanted.values()):
        return None
    size = sum(4 * int(np.prod(t.shape)) if t.kind in SLOW else t.n_bytes for t in wanted.values())
    return wanted if "token_embd.weight" in wanted and size <= MAX_BYTES else None


def _write(file: Path, source: Path, header: Header, tensors: dict[str, TensorInfo], n_layers: int) -> None:
    architecture = header.values["general.architecture"]
    writer = GGUFWriter(file, architecture)
    settings: dict[str, Any] = {
        key: value for key, value in header.values.items() if key.startswith(f"{architecture}.")
    }
    settings[f"{architecture}.block_count"] = n_layers + 1
    settings[f"{architecture}.vocab_size"] = tensors["token_embd.weight"].shape[0]
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in settings.items():
        adders[type(value)](key, value)
    writer.add_string("tokenizer.ggml.model", "no_vocab")  # tokens are numbers here
    data = np.memmap(source, np.uint8, "r")
    for name, tensor in tensors.items():
        raw = data[tensor.start : tensor.start + tensor.n_bytes]
        last = name.startswith(f"blk.{n_layers}.")  # never computed
        if tensor.kind in SLOW and not last:
            block = quants.dequantize(raw.reshape(tensor.shape[0], -1), tensor.kind)  # (n_out, n_in)
            writer.add_tensor(name, block.astype(np.float32))
        elif tensor.kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, raw.view(np.float32).reshape(tensor.shape))
        else:
            writer.add_tensor(name, raw.reshape(*tensor.shape[:-1], -1), raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
