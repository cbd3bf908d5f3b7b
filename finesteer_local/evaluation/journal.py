"""Keeps what an evaluation has computed, so that a stopped run goes on and a longer one adds to it.

One JSONL file a model; a line holds a key and a value. The key is the SHA-256 of everything that the value depends on,
so a changed profile, prompt or setting is never answered from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from finesteer_local import __version__, paths
from finesteer_local.errors import StorageError
from finesteer_local.runtime import SteeredLlama


def digest(*parts: Any) -> str:
    """SHA-256 (hex) over values: arrays, dataclasses and whatever JSON holds, nested at will."""
    state = hashlib.sha256()
    _feed(state, parts)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        state.update(f"array {value.dtype} {value.shape}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        state.update(f"object {type(value).__name__}".encode())
        for field in fields(value):
            _feed(state, field.name)
            _feed(state, getattr(value, field.name))
    elif isinstance(value, dict):
        state.update(b"{")
        for key in sorted(value, key=str):
            _feed(state, str(key))
            _feed(state, value[key])
        state.update(b"}")
    elif isinstance(value, (list, tuple)):
        state.update(b"[")
        for item in value:
            _feed(state, item)
        state.update(b"]")
    else:
        state.update(json.dumps(value).encode() + b";")


class Journal:
    """Values by key, in memory and in a file that only ever grows; of one key's values the last one holds.

    Args:
        path: the file; None remembers for this run alone.
        fresh: begin the file anew.

    Raises:
        StorageError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, *, fresh: bool = False) -> None:
        self.path, self._values = path, dict[str, Any]()
        if path is None:
            return
        paths.ensure_dir(path.parent)
        try:
            if path.exists() and not fresh:
                self._load(path)
            elif path.exists():
                path.unlink()
            # Line by line, so that whatever ends the program loses one value at most.
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise StorageError(f"cannot keep {path}: {(error.strerror or str(error)).lower()}") from error

    def _load(self, path: Path) -> None:
        text = path.read_bytes()
        for line in text.split(b"\n"):
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):  # the line that was being written when the program was stopped
                continue
            self._values[str(key)] = value
        if text and not text.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value
        if self.path is not None:
            try:
                self._file.write(json.dumps([key, value], ensure_ascii=False) + "\n")
            except OSError as error:
                raise StorageError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}") from error

    def remembered(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of `key`, computed where there is none yet; it must be what JSON gives back."""
        if key not in self:
            self[key] = compute()
        return self[key]

    def close(self) -> None:
        if self.path is not None:
            self._file.close()


def run_folder(llama: SteeredLlama) -> Path:
    """Where evaluations of this model file, by this version, keep what they computed."""
    identity = llama.identity
    size = Path(llama.model_path).stat().st_size
    key = digest(
        __version__,
        metadata.version("llama-cpp-python"),
        identity.fingerprint,
        size,
        llama.chat_format,
        llama.model_params.n_gpu_layers,
    )
    return paths.evaluations_dir() / f"{identity.fingerprint[:12]}-{key[:12]}"
