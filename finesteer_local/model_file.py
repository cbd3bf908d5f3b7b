"""Model files that would take the whole process down: llama.cpp checks some values with assertions, not with errors.

Found by reading `llama_model_base::load_hparams` of llama.cpp. What cannot be caught here is listed in
docs/converters.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from finesteer_local.errors import ModelError, one_line
from finesteer_local.gguf_file import Header

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_MAX_WIDTH = 1 << 20
_RANK = 4  # LLAMA_POOLING_TYPE_RANK
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


def norm_weights(path: Path, header: Header) -> dict[str, bytes]:
    """The raw bytes of the model's norm weights, `*_norm.weight`, always float32, by name.

    Raises:
        OSError: the file cannot be read.
    """
    norms = {}
    with path.open("rb") as file:
        for name, tensor in header.tensors.items():
            if name.endswith("_norm.weight") and tensor.kind == GGMLQuantizationType.F32:
                file.seek(tensor.start)
                norms[name] = file.read(tensor.n_bytes)
    return norms


def check_model(path: Path, header: Header) -> None:
    """Check what llama.cpp would abort on.

    Raises:
        ModelError: it would; the message names the key.
    """
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str):
        return  # a later part of a split model, or no model at all

    def require(condition: bool, key: str, what: str) -> None:
        if not condition:
            raise ModelError(one_line(f"{path} is damaged: its key {architecture}.{key} {what}; fetch it again"))

    def number(key: str, default: int = 0) -> int:
        value: Any = (header.arrays | header.values).get(f"{architecture}.{key}", default)
        require(isinstance(value, int), key, "has the wrong type")
        return int(value)

    n_layer = number("block_count")
    require(0 <= n_layer <= MAX_LAYERS, "block_count", f"is {n_layer}, not within {MAX_LAYERS}")
    for key in ("embedding_length", "context_length"):
        require(number(key) >= 0, key, "is negative")
    require(number("embedding_length") <= _MAX_WIDTH, "embedding_length", "is out of range")
    require(0 <= number("nextn_predict_layers") <= n_layer, "nextn_predict_layers", "is more than its layers")
    scaling = header.values.get(f"{architecture}.rope.scaling.type", "linear")
    require(scaling in _ROPE_SCALINGS, "rope.scaling.type", f"is none of {', '.join(_ROPE_SCALINGS)}")
    _check_experts(number, require, f"{architecture}.expert_used_count" in header.arrays)


def check_writes_text(path: Path, header: Header) -> None:
    """Check that the model writes text, token by token.

    Embedding models and rerankers say so by how their tokens are pooled, encoders by attention in both directions or by
    their tensors; a vision projector and an adapter are no models, but files beside one.

    Raises:
        ModelError: it does not.
    """
    values, tensors = header.values, header.tensors
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        return
    if architecture == "clip" or values.get("general.type") == "mmproj":
        raise ModelError(
            one_line(f"{path} is the vision projector (mmproj) that goes beside a model; give the model's own file")
        )
    if values.get("general.type") == "adapter":
        raise ModelError(one_line(f"{path} is an adapter, not a model; give the file of a model"))
    reranks = values.get(f"{architecture}.pooling_type") == _RANK or any(
        name.startswith(("cls.", "classifier.")) for name in tensors
    )
    if reranks:
        kind = "a reranking model"
    elif values.get(f"{architecture}.pooling_type"):
        kind = "an embedding model"
    elif values.get(f"{architecture}.attention.causal") is False or "token_types.weight" in tensors:
        kind = "an encoder"
    elif any(name.startswith("enc.") for name in tensors):
        kind = "an encoder-decoder" if any(name.startswith("dec.") for name in tensors) else "an encoder"
    else:
        return
    raise ModelError(
        one_line(
            f"{path} holds {kind} (architecture {architecture!r}), which does not write text token by token; "
            "use a chat or completion model"
        )
    )


def _check_experts(number: Any, require: Any, used_by_layer: bool) -> None:
    n_experts, groups, groups_used = (number(f"expert_{key}") for key in ("count", "group_count", "group_used_count"))
    require(0 <= n_experts <= MAX_EXPERTS, "expert_count", f"is not within {MAX_EXPERTS}")
    if not used_by_layer:
        used = number("expert_used_count")
        require(
            0 <= used <= n_experts and (used > 0 or n_experts == 0), "expert_used_count", "does not fit its experts"
        )
    require(0 <= groups < max(n_experts, 1), "expert_group_count", "does not fit its experts")
    if groups > 1:
        require(n_experts % groups == 0, "expert_group_count", "does not divide its experts")
        require(0 < groups_used < groups, "expert_group_used_count", "does not fit its groups")
