"""Finds the importer for a file, by its first bytes and its structure, never by its name, never by running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finesteer_local.errors import ProfileError

from . import arrays, cast, controlvector, mose, npy, ours, safetensors, saklas, torchfile
from .arrays import Hints
from .foreign import MAX_BYTES, Foreign, refuse, refuse_other_operators
from .jsonfile import parse_json
from .zipped import unzip

_SUFFIXES = (".gguf", ".safetensors", ".svec", ".npz", ".npy", ".pt", ".pth", ".bin")
_JSON_START = (b"{", b" ", b"\t", b"\r", b"\n")


def read(path: Path, hints: Hints) -> Foreign:
    """Read a steering vector or mixture of any known format; of a folder, the one such file in it.

    Raises:
        ProfileError: it is damaged, of no known format, or cannot be represented by a profile; the message says why.
    """
    try:
        return _read(_one_file(path) if path.is_dir() else path, hints)
    except ProfileError:
        raise
    except OSError as error:
        raise refuse(path, f"it cannot be read ({(error.strerror or str(error)).lower()})") from error


def _one_file(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5])
        raise refuse(
            folder,
            f"it holds {len(files)} files that could be meant ({names}); name one"
            if files
            else "no file in it can be imported",
        )
    return files[0]


def _read(path: Path, hints: Hints) -> Foreign:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise refuse(path, f"it is larger than {MAX_BYTES >> 20} MiB; a model is no steering vector")
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"GGUF":
        return controlvector.read(path)
    if head[:6] == npy.MAGIC:
        return arrays.read_arrays(path, "NumPy array", {"": npy.parse(path, "it", path.read_bytes())}, hints)
    if head[:2] == b"PK":
        return _read_zip(path, hints)
    if safetensors.looks_like(head, size):
        return _read_safetensors(path, hints)
    if head[:1] in _JSON_START:
        return _read_json(path, hints)
    if head[:1] == b"\x80":
        raise refuse(path, "it is a pickle, which is a program and is never loaded; save the vectors as safetensors")
    raise refuse(path, "its format is unknown; docs/converters.md lists what can be imported")


def _read_zip(path: Path, hints: Hints) -> Foreign:
    files = unzip(path)
    if not any(name.rpartition("/")[2] == "data.pkl" for name in files):
        return arrays.read_arrays(path, "NumPy archive", npy.from_archive(path, files), hints)
    value = torchfile.parse(path, files)
    if (state := mose.state_dict(value)) is not None:
        return mose.read(path, state, hints.layer)
    if isinstance(value, torchfile.Record):
        return _read_steering_vector(path, value.fields, hints)
    return arrays.read_arrays(path, "PyTorch file of vectors", _as_arrays(path, value), hints)


def _read_steering_vector(path: Path, fields: dict[Any, Any], hints: Hints) -> Foreign:
    """The class `SteeringVector` of the steering-vectors library: added to the output of a module of every block."""
    kind = fields.get("layer_type", "decoder_block")
    if kind != "decoder_block":
        raise refuse(
            path, f"its layer_type is {str(kind)[:40]!r}; a profile steers the blocks' outputs (decoder_block)"
        )
    found = _as_arrays(path, fields.get("layer_activations"))
    if not all(isinstance(layer, int) for layer in found):
        raise refuse(path, "its layer_activations are not numbered")
    return arrays.read_arrays(path, "steering-vectors vector", found, hints)


def _as_arrays(path: Path, value: Any) -> dict[str | int, np.ndarray[Any, Any]]:
    found = {"": value} if isinstance(value, np.ndarray) else value
    if not isinstance(found, dict) or not found or not all(isinstance(array, np.ndarray) for array in found.values()):
        raise refuse(path, "it holds something other than one vector a layer")
    return found


def _read_safetensors(path: Path, hints: Hints) -> Foreign:
    tensors, metadata = safetensors.read(path)
    refuse_other_operators(path, metadata)
    beside = saklas.sidecar(path)
    if saklas.is_manifold(tensors):
        return saklas.read_manifold(path, tensors, beside)
    if beside is not None:
        return saklas.read_profile(path, tensors)
    if not tensors:
        raise refuse(path, "it holds no tensor")
    return arrays.read_arrays(path, "safetensors file of vectors", tensors, hints)


def _read_json(path: Path, hints: Hints) -> Foreign:
    value = parse_json(path, path.read_bytes(), "the file")
    if cast.is_svec(value):
        return cast.read(path, value)
    if ours.is_vectors(value):
        return ours.read_json(path, value)
    raise refuse(path, "it is JSON, but no steering vector of a known program")
