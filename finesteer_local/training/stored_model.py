"""A GGUF model as a transformers model whose matrices take a byte a weight (stored.py), filled tensor by tensor.

transformers itself reads a file's tensors into float32, all of them, before anything else: 6 GB for 1.5 billion
parameters. Here one tensor at a time is.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import get_tensor_name_map
from torch import Tensor, nn

from finesteer_local.errors import ModelError
from finesteer_local.training.memory import give_back
from finesteer_local.training.stored import StoredEmbedding, StoredLinear, stored
from finesteer_local.training.tensor_file import Shape, TensorFile

_ROWS = 1 << 22
"""Numbers of a matrix that are in float32 at a time."""
_THREADS = 2


def stored_model(path: Path, config: Any, dtype: torch.dtype) -> Any:
    """The GGUF model at `path` as a causal language model of transformers that computes in `dtype`.

    Args:
        config: of transformers, for this model.

    Raises:
        ModelError: its architecture, or something in it, is not known here.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    file = TensorFile(path)
    shape = Shape.of(file.header)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    decoder = model.get_decoder()
    names = get_tensor_name_map(shape.architecture, len(decoder.layers))

    def fill(place: str) -> None:
        name = names.get_name(place)
        if name is None:
            raise ModelError(f"{path}: its {place} is not read in 8 bits")
        _fill(file, name, model, place, shape, dtype)
        file.forget()

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    places = [place for place, each in model.named_modules() if each not in ends and [*each.parameters(recurse=False)]]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(fill, places))
    embedding = _matrix(file, "token_embd.weight")
    head = _matrix(file, "output.weight") if file.has("output.weight") else embedding
    decoder.embed_tokens = StoredEmbedding(*embedding, dtype)
    model.lm_head = StoredLinear(*head)
    file.forget()
    give_back()
    return model


def _fill(file: TensorFile, name: str, model: nn.Module, place: str, shape: Shape, dtype: torch.dtype) -> None:
    """Give the module at `place`, a norm or a matrix, the tensors `name`."""
    module = model.get_submodule(place)
    if not isinstance(module, nn.Linear):
        module.weight = nn.Parameter(file.rows(f"{name}.weight").to(dtype), requires_grad=False)
        return
    weight, scale = _matrix(file, f"{name}.weight")
    bias = file.rows(f"{name}.bias") if file.has(f"{name}.bias") else None
    if shape.paired and name.endswith(("attn_q", "attn_k")):
        weight, scale = _halved(weight, shape), _halved(scale, shape)
        bias = None if bias is None else _halved(bias, shape)
    parent, _, last = place.rpartition(".")
    made = StoredLinear(weight, scale, None if bias is None else bias.to(dtype))
    setattr(model.get_submodule(parent), last, made)


def _matrix(file: TensorFile, name: str) -> tuple[Tensor, Tensor]:
    """A tensor in 8 bits, and its scales; of its rows only some are in float32 at a time."""
    parts = [stored(file.rows(name, rows)) for rows in _blocks(file.shape(name))]
    return torch.cat([weight for weight, _ in parts]), torch.cat([scale for _, scale in parts])


def _blocks(shape: tuple[int, ...]) -> Iterator[np.ndarray[Any, np.dtype[np.intp]]]:
    n_rows, n_columns = shape
    yield from np.split(np.arange(n_rows), range(step := max(_ROWS // n_columns, 1), n_rows, step))


def _halved(rows: Tensor, shape: Shape) -> Tensor:
    """Rows of heads whose neighbouring numbers are rotated together, so that those of two halves are."""
    return rows.view(-1, shape.n_rot // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
