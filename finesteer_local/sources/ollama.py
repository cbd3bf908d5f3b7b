"""Ollama's models: a manifest by name, and blobs by their SHA-256, of which one is the GGUF file.

Layout: `manifests/<host>/<namespace>/<model>/<tag>` and `blobs/sha256-<hex>` (manifest/paths.go, types/model/name.go).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finesteer_local.errors import ModelError, UnknownNameError
from finesteer_local.sources.found import FoundModel, Note
from finesteer_local.sources.quantisation import quantisation_of

PREFIX, TITLE = "ollama", "Ollama"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_ADAPTER_LAYER = "application/vnd.ollama.image.adapter"
_PART = re.compile(r"[A-Za-z0-9_][\w.-]{0,349}")
_HOST_PART = re.compile(r"[A-Za-z0-9_][\w.:-]{0,349}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_LARGEST = 1 << 22  # bytes of a manifest or a configuration


class Name(NamedTuple):
    """The four parts of a model's name."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        """As `ollama list` writes it."""
        text = f"{self.model}:{self.tag}"
        if (self.host, self.namespace) != (_HOST, _NAMESPACE):
            text = f"{self.namespace}/{text}"
        return text if self.host == _HOST else f"{self.host}/{text}"


def folders() -> list[Path]:
    """`OLLAMA_MODELS`, or the user's folder and, on Linux, that of the service that Ollama's installer sets up."""
    if given := os.environ.get("OLLAMA_MODELS", "").strip().strip("\"'"):
        return [Path(given)]
    found = [Path.home() / ".ollama" / "models"]
    if sys.platform == "linux":
        found.append(Path("/usr/share/ollama/.ollama/models"))
    return found


def models() -> Iterator[FoundModel]:
    """All that there is a manifest of, with what is wrong with it."""
    seen = set()
    for folder in folders():
        try:
            manifests = sorted((folder / "manifests").glob("*/*/*/*"))
        except OSError:
            continue
        for path in manifests:
            name = Name(*path.relative_to(folder / "manifests").parts)
            if name not in seen and path.is_file() and _is_name(name):
                seen.add(name)
                yield _read(folder, name)


def resolve(given: str, note: Note | None) -> Path:
    """The blob of the model that Ollama calls `given`.

    Raises:
        UnknownNameError: Ollama has no such model.
        ModelError: its manifest or its blob is not as it should be.
    """
    name = _parse(given)
    if not _is_name(name):
        raise UnknownNameError(f"ollama:{given} is no name of a model; write ollama:NAME or ollama:NAME:TAG")
    for folder in folders():
        if os.path.isfile(folder.joinpath("manifests", *name)):
            found = _read(folder, name)
            if found.problem:
                raise ModelError(f"cannot open {found.name}: {found.problem}")
            return found.path
    near = [model.name for model in models() if name.model.lower() in model.own_name.lower()]
    hint = f"there are: {', '.join(near[:4])}" if near else f"fetch it with: ollama pull {given}"
    raise UnknownNameError(f"Ollama has no model {given!r} in {' or '.join(map(str, folders()))}; {hint}")


def _parse(text: str) -> Name:
    """As Ollama's `ParseName` reads a name: `[[host/]namespace/]model[:tag]`."""
    tag = ""
    if text.rfind(":") > text.rfind("/"):
        text, _, tag = text.rpartition(":")
    rest, _, model = text.rpartition("/")
    host, _, namespace = rest.rpartition("/")
    return Name(host or _HOST, namespace or _NAMESPACE, model, tag or _TAG)


def _is_name(name: Name) -> bool:
    """Whether each part can be one of a path, and no more."""
    return bool(_HOST_PART.fullmatch(name.host)) and all(_PART.fullmatch(part) for part in name[1:])


def _read(folder: Path, name: Name) -> FoundModel:
    def found(path: Path, size: int = 0, quantisation: str = "", problem: str = "") -> FoundModel:
        return FoundModel(f"{PREFIX}:{name}", str(name), TITLE, path, size, quantisation, problem)

    manifest = folder.joinpath("manifests", *name)
    again = f"fetch it again with: ollama pull {name}"
    try:
        content = _json(manifest)
        layers = [layer for layer in content["layers"] if layer["mediaType"] == _MODEL_LAYER]
        adapters = [layer for layer in content["layers"] if layer["mediaType"] == _ADAPTER_LAYER]
        blobs = [_blob(folder, layer["digest"]) for layer in layers]
        sizes = [int(layer.get("size", 0)) for layer in layers]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return found(manifest, problem=f"its manifest {manifest} is damaged; {again}")
    if not blobs:
        return found(manifest, problem="it is no GGUF file (in the cloud, or for MLX); use another model")
    if adapters or len(blobs) > 1:
        return found(blobs[0], sum(sizes), problem="it is put together of several files; merge them into one GGUF file")
    path, size = blobs[0], sizes[0]
    quantisation = _quantisation(folder, content) or quantisation_of(name.tag)
    try:
        have = path.stat().st_size
    except OSError:
        half = path.with_name(f"{path.name}-partial").exists()
        problem = "its download stopped half-way" if half else f"its manifest names the file {path}, which is not there"
        return found(path, size, quantisation, f"{problem}; {again}")
    if size and have != size:
        return found(path, have, quantisation, f"{path} has {have:,} of {size:,} bytes; {again}")
    return found(path, have, quantisation)


def _blob(folder: Path, digest: str) -> Path:
    match = _DIGEST.fullmatch(digest)
    if not match:
        raise ValueError(f"no digest: {digest}")
    return folder / "blobs" / f"sha256-{match[1]}"


def _quantisation(folder: Path, manifest: Any) -> str:
    """`file_type` of the image's configuration (types/model/config.go)."""
    try:
        return str(_json(_blob(folder, manifest["config"]["digest"]))["file_type"])[:20]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _json(path: Path) -> Any:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError("too large")
    return json.loads(data)
