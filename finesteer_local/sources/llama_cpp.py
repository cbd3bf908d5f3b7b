"""What llama.cpp's `-hf` fetched before it used Hugging Face's cache: `<owner>_<repo>_<file>.gguf`, all in one folder.

Today it fetches into Hugging Face's cache (common/hf-cache.cpp), which `hub_cache` reads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from finesteer_local.sources.found import FoundModel, Note, choose, from_file, gguf_files

PREFIX, TITLE = "llama.cpp", "llama.cpp"


def folders() -> list[Path]:
    """`LLAMA_CACHE`, or the platform's folder (`fs_get_cache_directory` of common/common.cpp)."""
    if given := os.environ.get("LLAMA_CACHE"):
        return [Path(given)]
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [base / "llama.cpp"]


def models() -> Iterator[FoundModel]:
    """The model files there; a download under way has another ending."""
    for folder in folders():
        for path in gguf_files(folder, depth=0):
            yield from_file(PREFIX, TITLE, path.name, path, "fetch it again with llama.cpp")


def resolve(given: str, note: Note | None) -> Path:
    """The file of the model that is called `given`; raises as `found.choose` does."""
    return choose(PREFIX, given, list(models()), folders(), note)
