"""A Hugging Face model directory: its model, its tokenizer, and which model it is.

A profile is for the GGUF file of the same model: its fingerprint is computed here as it is there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finesteer_local.distribution import missing_extra
from finesteer_local.errors import ModelError, SteeringError
from finesteer_local.identity import ModelIdentity, fingerprint, read_model_identity

# transformers' model_type -> llama.cpp's architecture, where the norms are the same numbers but for `_OFFSET`.
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
_OFFSET = {"gemma": 1.0, "gemma2": 1.0, "gemma3": 1.0}  # conversion adds it to every norm weight


def load(folder: Path, device: str) -> tuple[Any, Any]:
    """The model and the tokenizer; nothing is fetched, and no code that came with them is run.

    Raises:
        MissingExtraError, ModelError, SteeringError: as for `TransformersModel`.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "this backend needs transformers") from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no Hugging Face model directory: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors; other weight files are pickles and are not loaded")
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **safe)
        dtype = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, dtype=dtype, **safe)
    except Exception as error:  # whatever the directory's files make of it
        raise ModelError(f"transformers cannot load {folder}: {' '.join(str(error).split())[:200]}") from error
    if not hasattr(model.get_decoder(), "layers"):
        raise SteeringError(f"the blocks of {type(model).__name__} cannot be found: no training with this backend")
    return model.to(device).eval(), tokenizer


def identity_of(folder: Path, model: Any, tokenizer: Any, gguf: str | Path | None) -> ModelIdentity:
    """What the GGUF file of this model would say of itself, or what `gguf` says.

    Raises:
        ModelError: `gguf` is of another model, or is needed.
    """
    config = model.config
    known = None if gguf is None else read_model_identity(gguf)
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None and known is None:
        raise ModelError(
            f"the fingerprint of a {config.model_type!r} model cannot be computed from its directory; "
            "give its GGUF file with --gguf"
        )
    n_layer, n_embd = len(model.get_decoder().layers), int(config.hidden_size)
    computed = fingerprint(norms(model, architecture, n_layer)) if architecture else None
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    if known is not None:
        if (computed or known.fingerprint, n_layer, n_embd) != (known.fingerprint, known.n_layer, known.n_embd):
            raise ModelError(f"{gguf} is not of the model in {folder}: its norm weights or sizes differ")
        return known
    return ModelIdentity(
        fingerprint=str(computed),
        name=folder.name,
        architecture=str(architecture),
        n_embd=n_embd,
        n_layer=n_layer,
        n_vocab=int(config.vocab_size),
        template_hash=hashlib.sha256(template.encode()).hexdigest() if template else "",
        context_length=int(getattr(config, "max_position_embeddings", 0)),
    )


def norms(model: Any, architecture: str, n_layer: int) -> dict[str, bytes]:
    """The norm weights as convert_hf_to_gguf.py writes them, by their names in GGUF."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    kind = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[architecture]
    assert isinstance(kind, MODEL_ARCH)
    names = get_tensor_name_map(kind, n_layer)
    found = {}
    for name, tensor in model.state_dict().items():
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped and mapped.endswith("_norm.weight"):
            weight = tensor.detach().float().cpu() + _OFFSET.get(architecture, 0.0)
            found[mapped] = np.ascontiguousarray(weight.numpy(), "<f4").tobytes()
    return found
