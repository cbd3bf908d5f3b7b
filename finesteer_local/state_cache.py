"""The folder that keeps harvested hidden states: how large it may be, what is in it, and what goes first.

A *segment* is what one harvest found that was not there before: the states, and an index of whose they are (see
runtime/cached_harvest.py). Segments of one model, layer and type share a folder. Once all segments together are larger
than the limit, those that were not used for longest are deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finesteer_local import paths
from finesteer_local.errors import DataError

LIMIT_VARIABLE = "FINESTEER_CACHE_GB"
DEFAULT_LIMIT = 4.0  # GB
ABOUT = "about.json"
"""What a folder's segments are of: model, layer, type."""
INDEX = ".index"
RECORD = 24
"""Bytes of an index for each prompt, and before them for its head (runtime/cached_harvest.py)."""
IN_USE = 6 * 3600.0
"""Seconds for which states are not deleted to make room for others: a training reads them in portions, and needs them
all at its end. Two at once would delete each other's otherwise."""
_ABANDONED = 3 * 86400.0  # seconds after which nobody goes on with an interrupted harvest


def folder() -> Path:
    """Where the states are kept."""
    return paths.cache_dir() / "states"


def limit() -> int:
    """How many bytes may be kept; `FINESTEER_CACHE_GB` sets it, 0 keeps nothing.

    Raises:
        DataError: the variable is no number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else DEFAULT_LIMIT
        return max(int(gigabytes * 1e9), 0)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{LIMIT_VARIABLE} is {text!r}; give the gigabytes to keep as a number, 0 for none") from error


@dataclass(frozen=True)
class Kept:
    """The segments of one model and layer."""

    model: str
    layer: int
    kind: str  # of the numbers: float16 or float32
    n_prompts: int
    n_bytes: int
    used: float  # seconds since 1970


def kept() -> list[Kept]:
    """What is kept, last used first."""
    found = []
    for place in _places():
        try:
            about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            model, layer, kind = str(about["model"]), int(about["layer"]), str(about["kind"])
        except (OSError, ValueError, KeyError, TypeError):
            model, layer, kind = "damaged", 0, ""
        files = [path for path in _files(place) if path.name != ABOUT]
        n_prompts = sum(_stat(path)[0] // RECORD - 1 for path in files if path.name.endswith(INDEX))
        if files:
            used = max(_stat(path)[1] for path in files)
            found.append(Kept(model, layer, kind, n_prompts, sum(_stat(path)[0] for path in files), used))
    return sorted(found, key=lambda each: -each.used)


def clear() -> int:
    """Delete everything; gives the bytes that were freed."""
    n_bytes = sum(_stat(path)[0] for place in _places() for path in _files(place))
    shutil.rmtree(folder(), ignore_errors=True)
    return n_bytes


def trim(n_bytes: int, *, spare: float = 0.0) -> int:
    """Delete segments, the longest unused first, until at most `n_bytes` are left; gives the bytes freed.

    Args:
        spare: what was used in the last so many seconds stays, whatever it takes; not where nothing may be kept.
    """
    segments: dict[Path, list[Path]] = {}
    for place in _places():
        for path in _files(place):
            if path.name != ABOUT:
                segments.setdefault(_stem(path), []).append(path)
    age = {stem: max(_stat(path)[1] for path in files) for stem, files in segments.items()}
    size = {stem: sum(_stat(path)[0] for path in files) for stem, files in segments.items()}
    total, freed = sum(size.values()), 0
    for stem in sorted(segments, key=lambda stem: age[stem]):
        if stem.with_name(stem.name + INDEX).exists():
            spared = n_bytes > 0 and time.time() - age[stem] < spare
            unwanted = total - freed > n_bytes and not spared
        else:  # somebody is at it, or will go on with it
            unwanted = time.time() - age[stem] > _ABANDONED
        if unwanted:
            delete(stem)
            freed += size[stem]
    return freed


def delete(stem: Path) -> None:
    """Delete a segment; on Windows one that somebody has open stays until the next time."""
    for path in _files(stem.parent):
        if _stem(path) == stem:
            with suppress(OSError):
                path.unlink()


def _stem(path: Path) -> Path:
    return path.with_name(path.name.split(".", 1)[0])


def _places() -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in folder().iterdir() if path.is_dir())
    return []


def _files(place: Path) -> list[Path]:
    """A folder's files but those that somebody is writing: they have no name yet (`paths.atomic_write`)."""
    with suppress(OSError):
        return [path for path in place.iterdir() if path.is_file() and not path.name.startswith(".")]
    return []


def _stat(path: Path) -> tuple[int, float]:
    with suppress(OSError):
        stat = path.stat()
        return stat.st_size, stat.st_mtime
    return 0, 0.0
