"""A GGUF model's weights for PyTorch, where vectors are learnt through them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGUFValueType, GGUFWriter
from numpy.typing import NDArray
from torch.nn import functional

from finesteer_local.distribution import missing_extra
from finesteer_local.errors import ModelError
from finesteer_local.gguf_file import read_header
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training.memory import give_back
from finesteer_local.training.precision import fast_dtype
from finesteer_local.training.stored import StoredLinear
from finesteer_local.training.stored_model import stored_model
from finesteer_local.training.tensor_file import is_known

MAX_PARAMETERS = 700_000_000
"""With more parameters, vectors are learnt through the model only on demand: it would take longer than all the rest.
A model of half a billion has 630 million as llama.cpp counts them, where its output matrix is not that of its input."""
MAX_FAST_PARAMETERS = 2_000_000_000
"""The same where the processor multiplies bfloat16 fast, several times as fast as llama.cpp the blocks of a file."""
LARGEST = {torch.bfloat16: 1 << 30, torch.float32: 3 << 30}
"""Bytes that weights may take in the precision in which they are multiplied; more are kept in 8 bits (stored_model.py).
To open them into float32 for every token of an answer takes longer than to multiply."""
WITHOUT = "train with --no-optimise"
_SAMPLE = "The capital of France is Paris. Water boils at a hundred degrees, and ice melts at zero."
_CLOSE = 0.5  # a token's log-probability: what 8-bit activations move is a tenth of it, other weights move whole units
_TOKENS = "tokenizer.ggml.tokens"
_MAX_ITEMS = 1 << 24


def learns_by_itself(llama: TrainableModel, judge: str) -> bool:
    """Whether training learns through the model where the user does not say: for refusals of a small model.

    Weak models need to be taught the end of an answer, and stronger ones decline more often so, long prompts above all
    (docs/experiments.md).
    """
    return judge == "refusal" and opens_by_itself(llama)


def opens_by_itself(llama: TrainableModel) -> bool:
    """Whether a model's weights are opened in PyTorch where the user does not say: they can be, and are few."""
    if not all(find_spec(name) for name in ("accelerate", "transformers")):
        return False
    if llama.n_parameters <= MAX_PARAMETERS:
        return True
    fast = llama.n_parameters <= MAX_FAST_PARAMETERS and fast_dtype() == torch.bfloat16
    return fast and is_known(Path(llama.model_path))  # else transformers would take 6 GB to read them


def weights_of(llama: TrainableModel) -> Any:
    """The weights of `llama`, a GGUF model, as a transformers model; the `TransformersModel`'s own.

    They are in the precision in which this machine multiplies fastest (`precision.fast_dtype`), or kept in 8 bits where
    they would take more than `LARGEST`. What is learnt through them is the same (docs/experiments.md).

    Raises:
        MissingExtraError: transformers or accelerate is not installed.
        ModelError: transformers does not know the architecture or the quantisation, or computes something else.
    """
    if llama.weights is not None:
        return llama.weights
    try:
        import accelerate  # noqa: F401 - transformers asks for it here
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_extra("transformers", "--optimise needs transformers and accelerate") from error
    path = Path(llama.model_path)
    tokens = llama.tokenize(_SAMPLE.encode())
    [expected] = llama.answer_logprobs(tokens[:1], [tokens[1:]])
    give_back()  # before the weights come: llama.cpp has read its file
    dtype = fast_dtype()
    model = _kept_in_8_bits(path) if llama.n_parameters * dtype.itemsize > LARGEST[dtype] else None
    model = model or _read_whole(path)
    if not _computes(model.eval(), tokens, expected):
        raise ModelError(f"transformers does not compute what llama.cpp does with {path}; {WITHOUT}")
    return model


def _read_whole(path: Path) -> Any:
    """The model at `path` as transformers reads it; raises `ModelError` where it cannot."""
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory(prefix="finesteer-") as folder:
        short = Path(folder) / path.name
        try:
            return _loaded(AutoModelForCausalLM, short if _write_part(path, short) else path)
        except Exception:  # transformers may miss what is not in the copy, and there may be no room for it
            try:
                return _loaded(AutoModelForCausalLM, path)
            except Exception as error:  # whatever it makes of the file
                reason = " ".join(str(error).split())[:200]
                raise ModelError(f"transformers cannot read {path}: {reason}; {WITHOUT}") from error


def _kept_in_8_bits(path: Path) -> Any:
    """The model at `path` as a transformers model with a byte a weight; None where that is not known to be right."""
    from transformers import AutoConfig

    # Whatever transformers makes of a header, or what is not known here: it reads the whole file itself then.
    with TemporaryDirectory(prefix="finesteer-") as folder, contextlib.suppress(Exception):
        short = Path(folder) / path.name
        file = short if _write_part(path, short, tensors=False) else path
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        return stored_model(path, config, fast_dtype())
    return None


def in_8_bits(model: Any) -> bool:
    """Whether the weights of a transformers model are kept in 8 bits."""
    return isinstance(model.get_output_embeddings(), StoredLinear)


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits in float32, (n, n_vocab), of what the model's decoder gives, (n, n_embd)."""
    head = model.get_output_embeddings()
    if not in_8_bits(model):  # which take what comes
        hidden = hidden.to(head.weight.dtype)
    logits: torch.Tensor = head(hidden).float()  # some give float32 whatever they compute in
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _loaded(factory: Any, path: Path) -> Any:
    import transformers

    # Newer ones leave the blocks of a GGUF file as they are, through which nothing can be learnt.
    config = getattr(transformers, "GgufConfig", None)
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of its own
        return factory.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=fast_dtype(), local_files_only=True, **options
        )


def _write_part(path: Path, short: Path, *, tensors: bool = True) -> bool:
    """A copy of the GGUF file at `path` that has of its vocabulary only the size, and whether there is one.

    transformers reads every word of a vocabulary three times, which takes longer than all the weights. There is no copy
    where the header has other lists, whose values are not known here.
    """
    header = read_header(path, max_items=_MAX_ITEMS)
    architecture = header.values.get("general.architecture")
    lists = [key for key in header.arrays if not key.startswith(("general.", "tokenizer."))]
    if lists or not isinstance(architecture, str) or _TOKENS not in header.arrays:
        return False
    writer = GGUFWriter(short, architecture)
    values = {f"{architecture}.vocab_size": header.arrays[_TOKENS][1], **header.values}
    for key, value in values.items():
        if key.startswith(f"{architecture}.") or key == "general.name":
            writer.add_key_value(key, value, GGUFValueType.get_type(value))
    data = np.memmap(path, np.uint8, "r")
    for name, tensor in header.tensors.items() if tensors else ():
        block, size = GGML_QUANT_SIZES[tensor.kind]
        rows = data[tensor.start : tensor.start + tensor.n_bytes]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
        writer.add_tensor(name, rows.reshape(shape), raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return True


@torch.inference_mode()
def _computes(model: Any, tokens: Sequence[int], expected: NDArray[np.float64]) -> bool:
    """Whether transformers finds these tokens about as likely, but for the first, as llama.cpp does."""
    logits = model(input_ids=torch.tensor([list(tokens)])).logits[0, :-1].float()
    found = -functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
    return bool(np.abs(found.numpy() - expected).mean() < _CLOSE)  # NaN is not
