"""Hugging Face's cache on this machine, which huggingface_hub, llama.cpp's `-hf` and many others share.

Layout: `models--<owner>--<repo>/snapshots/<commit>/<file>`, links to `blobs/<hash>`, with `refs/<branch>` naming the
commit. llama.cpp looks where `LLAMA_CACHE` says first (common/hf-cache.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finesteer_local.sources.found import FoundModel, from_file, gguf_files, with_short_names

PREFIX, TITLE = "hf", "Hugging Face"
_FOLDER = "models--"


def folders() -> list[Path]:
    """The caches: llama.cpp's, and huggingface_hub's."""
    environ = os.environ
    found = [Path(environ["LLAMA_CACHE"])] if environ.get("LLAMA_CACHE") else []
    if cache := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        found.append(Path(os.path.expandvars(os.path.expanduser(cache))))
    elif home := environ.get("HF_HOME"):
        found.append(Path(os.path.expandvars(os.path.expanduser(home))) / "hub")
    else:
        base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        found.append(Path(base) / "huggingface" / "hub")
    return list(dict.fromkeys(found))


def models(repo: str = "", revision: str = "") -> Iterator[FoundModel]:
    """The model files of all repositories, or of one, each in the revision that is current here, or the one named."""
    found: dict[str, FoundModel] = {}
    for cache in folders():
        for folder in _repositories(cache, repo):
            snapshot = _snapshot(folder, revision)
            if snapshot is None:
                continue
            owner_and_repo = folder.name.removeprefix(_FOLDER).replace("--", "/", 1)
            for path in gguf_files(snapshot, depth=3):
                name = f"{owner_and_repo}/{path.relative_to(snapshot).as_posix()}"
                again = f"fetch it with: finesteer-local models pull hf:{name}"
                found.setdefault(name, from_file(PREFIX, TITLE, name, path, again))
    return with_short_names(PREFIX, found.values())


def _repositories(cache: Path, repo: str) -> list[Path]:
    if repo:
        return [cache / f"{_FOLDER}{repo.replace('/', '--')}"]
    try:
        return sorted(cache.glob(f"{_FOLDER}*--*"))
    except OSError:
        return []


def _snapshot(folder: Path, revision: str) -> Path | None:
    """The folder of a revision; without one that of `main`, else of whichever branch there is."""
    if revision and (folder / "snapshots" / revision).is_dir():
        return folder / "snapshots" / revision
    refs = folder / "refs"
    named = [refs / (revision or "main")]
    if not revision and refs.is_dir():
        named += sorted(path for path in refs.iterdir() if path.is_file())
    for ref in named:
        try:
            commit = ref.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if commit.isalnum() and (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
    return None
