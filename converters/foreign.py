"""What an importer hands over, and how it refuses: the same for every foreign format.

Layers are llama.cpp's: a vector of layer N is added to the output of block N (`l_out-N`). docs/converters.md has the
table of how each format counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import ProfileError, one_line
from finesteer_local.steering import Experts

Array = NDArray[np.float32]

MAX_BYTES = 1 << 30
_MAX_LAYER = 4096
_MAX_WIDTH = 1 << 16


@dataclass(frozen=True)
class Foreign:
    """What a foreign file steers with.

    Attributes:
        format: what the file is, for people.
        experts: by layer; a plain vector is a mixture of one expert.
        reads: the layer whose output the router reads; None where the experts are plain vectors.
        model_hint: the architecture that the file names, or "".
        cannot: why a layer in `experts` cannot be steered, by layer; it has to be left out.
        strength: the strength that the format's own program takes where none is given.
        notes: what a user has to know about the translation.
    """

    format: str
    experts: Mapping[int, Experts]
    reads: int | None = None
    cannot: Mapping[int, str] = field(default_factory=dict)
    model_hint: str = ""
    strength: float = 1.0
    notes: tuple[str, ...] = field(default=())


def refuse(path: Path, why: str) -> ProfileError:
    """The error for a file that cannot be imported; `why` names the field."""
    return ProfileError(one_line(f"cannot import {path}: {why}"))


def plain_vectors(path: Path, format: str, vectors: Mapping[int, Array], **more: Any) -> Foreign:
    """A `Foreign` of one vector a layer; layers whose vector is all zeros steer nothing and are left out.

    Raises:
        ProfileError: there is no vector, or one that is no vector of finite numbers.
    """
    for layer, vector in vectors.items():
        check_vector(path, f"the vector of layer {layer}", vector)
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) > 1:
        raise refuse(path, f"its vectors have different lengths ({', '.join(map(str, sorted(widths)))})")
    experts = {layer: Experts.fixed(vector) for layer, vector in sorted(vectors.items()) if vector.any()}
    if not experts:
        raise refuse(path, "it holds no vector other than zero")
    return Foreign(format, experts, **more)


def check_vector(path: Path, name: str, vector: Array) -> None:
    """Raise `ProfileError` unless `vector` is (n_embd,), float32 and finite."""
    if vector.ndim != 1 or not 1 <= vector.size <= _MAX_WIDTH:
        raise refuse(path, f"{name} has shape {' x '.join(map(str, vector.shape)) or 'of a number'}, expected one row")
    if vector.dtype != np.float32 or not np.isfinite(vector).all():
        raise refuse(path, f"{name} is not finite")


def to_float32(path: Path, name: str, array: NDArray[Any]) -> Array:
    """`array` as float32; raises `ProfileError` where it holds no numbers, or numbers that float32 cannot hold."""
    if array.dtype.kind not in "fiu":
        raise refuse(path, f"{name} holds {array.dtype}, not numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.asarray(array, np.float32)
    if not np.isfinite(converted).all():
        raise refuse(path, f"{name} is not finite (in float32)")
    return converted


def layer_number(path: Path, name: str, text: str) -> int:
    """The layer in `text`, digits only; raises `ProfileError`."""
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) > _MAX_LAYER:
        raise refuse(path, f"{name}: {text[:40]!r} is no layer number")
    return int(text)


# Names under which programs keep how a vector is combined with the hidden state, where it is not simply added.
_OPERATORS = ("normalize", "normalise", "norm_preserving", "preserve_norm", "rotation", "rotate", "angular", "ablate")
_MODES = ("mode", "operator", "injection", "injection_mode", "steering_mode", "method_apply")
_ADDITIONS = ("add", "additive", "addition", "plus", "+")


def refuse_other_operators(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a file whose settings ask for more than adding its vectors: a profile adds, and nothing else.

    Raises:
        ProfileError: the message names the setting.
    """
    for key, value in settings.items():
        name = str(key).rpartition(".")[2].lower()
        wanted = str(value).strip().lower()
        rotates = name in _OPERATORS and wanted not in ("false", "0", "none", "no", "")
        if rotates or (name in _MODES and wanted not in (*_ADDITIONS, "none", "")):
            raise refuse(
                path,
                f"its setting {key!r} is {wanted[:40]!r}; a profile adds a vector, which is not the same "
                "(a rotation keeps the hidden state's length)",
            )


def unknown_names(names: Iterable[str], known: Iterable[str]) -> str:
    """The names that are not known, for a message; "" where there is none."""
    extra = sorted(set(names) - set(known))
    return ", ".join(repr(name[:60]) for name in extra[:3]) + (", …" if len(extra) > 3 else "")
