"""Tells which model a file holds: by its fingerprint, and by the sizes that must fit a profile."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finesteer_local.errors import ModelError
from finesteer_local.small_cache import SmallCache
from finesteer_local.split_model import split_parts

_identities = SmallCache("identities.json")
_READING = "2|"  # what is checked when a file is read; what was read with fewer checks is read again
_MAX_ITEMS = 1 << 24  # keys, tokens, merges, tensors of one file


@dataclass(frozen=True)
class ModelIdentity:
    """What a profile must know about its model.

    The fingerprint is the SHA-256 (hex) over the model's norm weights (`*_norm.weight`, always float32), in the order
    of their names: equal for every quantisation of one model, different between fine-tunes.
    """

    fingerprint: str
    name: str
    architecture: str
    n_embd: int
    n_layer: int
    n_vocab: int
    template_hash: str  # SHA-256 (hex) of the chat template, "" where the model has none
    context_length: int = field(default=0, compare=False)  # trained for; 0 where unknown. Not in profiles.


def read_model_identity(path: str | Path) -> ModelIdentity:
    """Read the identity of the GGUF model at `path` (all parts of a split model are read).

    The gguf package parses the whole vocabulary, seconds for a large one, so the answer is kept in the cache
    directory under the file's path, size and modification time.

    Raises:
        ModelError: the file is missing, cut short, not GGUF, or not a language model.
    """
    path = Path(path)
    parts = split_parts(path)
    stats = []
    for part in parts:
        try:
            stats.append(part.stat())
        except OSError as error:
            of = f", a part of {path.name}" if part != path else ""
            raise ModelError(f"cannot read the model {part}{of}: {error.strerror}") from error
    key = _READING + "|".join(
        f"{part.resolve()}:{s.st_size}:{s.st_mtime_ns}" for part, s in zip(parts, stats, strict=True)
    )
    with contextlib.suppress(TypeError):
        return ModelIdentity(**_identities.get(key))
    identity = _read(path, parts)
    _identities.keep(key, asdict(identity))
    return identity


def check_first_part(path: Path) -> None:
    """Raise `ModelError` for a later part of a split model: llama.cpp opens it by its first."""
    first = split_parts(path)[0]
    if path != first:
        raise ModelError(f"{path} is a later part of a split model; give its first: {first}")


def _read(path: Path, parts: list[Path]) -> ModelIdentity:
    from finesteer_local.gguf_file import DamagedGGUF, read_header
    from finesteer_local.model_file import check_model, check_writes_text, norm_weights

    values: dict[str, Any] = {}
    n_tokens = 0
    norms: dict[str, bytes] = {}
    for part in parts:
        try:
            with part.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise ModelError(
                        f"{part} is not a GGUF model file; convert it with llama.cpp's convert_hf_to_gguf.py"
                    )
            header = read_header(part, max_items=_MAX_ITEMS)
            norms |= norm_weights(part, header)
        except DamagedGGUF as error:
            raise ModelError(f"{error}; fetch it again") from error
        except OSError as error:
            raise ModelError(f"cannot read the model {part}: {error.strerror}") from error
        check_model(part, header)
        check_writes_text(part, header)
        # An array where a value belongs has the wrong type.
        values = {**header.arrays, **header.values, **values}
        n_tokens = n_tokens or header.arrays.get("tokenizer.ggml.tokens", (None, 0))[1]

    def value(key: str, kind: type[Any]) -> Any:
        found = values.get(key, kind())
        if not isinstance(found, kind):
            raise ModelError(f"{path} is damaged: its key {key} has the wrong type; fetch it again")
        return found

    architecture = value("general.architecture", str)
    n_embd, n_layer = (value(f"{architecture}.{key}", int) for key in ("embedding_length", "block_count"))
    context_length = value(f"{architecture}.context_length", int)
    name, template = value("general.name", str), value("tokenizer.chat_template", str)
    if not (norms and n_embd and n_layer):
        raise ModelError(f"{path} holds no language model to steer (architecture {architecture or 'none'!r})")
    return ModelIdentity(
        fingerprint=fingerprint(norms),
        name=name or path.stem,
        architecture=architecture,
        n_embd=n_embd,
        n_layer=n_layer,
        n_vocab=n_tokens,
        template_hash=hashlib.sha256(template.encode()).hexdigest() if template else "",
        context_length=context_length,
    )


def fingerprint(norms: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) over norm weights (float32, little-endian) by their GGUF names, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(norms):
        digest.update(norms[name])
    return digest.hexdigest()
