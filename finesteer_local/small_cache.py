"""Small answers that take seconds to find, kept in one JSON file of the cache directory."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from finesteer_local import paths
from finesteer_local.errors import FineSteerError

LIMIT = 200
"""Answers in one file; the oldest go first."""


class SmallCache:
    """Answers by their keys. A file that cannot be read or written costs the time of answering again, no more.

    Args:
        name: of the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def _file(self) -> Path:
        return paths.cache_dir() / self._name

    def get(self, key: str) -> Any:
        """The answer that was kept, or None. The file is the user's: the answer's shape is for the caller to check."""
        return self._read().get(key)

    def keep(self, key: str, answer: Any) -> None:
        """Keep an answer, which JSON can write."""
        known = {other: value for other, value in self._read().items() if other != key}
        known = dict([*list(known.items())[-(LIMIT - 1) :], (key, answer)])
        with contextlib.suppress(FineSteerError, OSError), paths.atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(read, dict):
                return read
        return {}
