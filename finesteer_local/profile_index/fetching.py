"""Fetching a profile of an index: nothing is believed that its hash, its signature and its content do not show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from finesteer_local.errors import DownloadError, ProfileError
from finesteer_local.paths import sha256_of
from finesteer_local.profile import Profile
from finesteer_local.profile_index.entries import Entry, fetch, is_address
from finesteer_local.profile_index.signatures import verify

_MAX_SIGNATURE = 1 << 14  # bytes


def fetch_entry(entry: Entry, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a profile into `folder`, check it, and return its path.

    Raises:
        DownloadError: it cannot be fetched, has another size, SHA-256 or signature than it should, or is another
            profile than the index says.
        ProfileError: it is damaged.
        MissingExtraError: it is signed, and py-minisign is not installed.
    """
    file = folder / "profile.gguf"
    _take(entry.file, file, entry.size, on_progress)
    if (n_bytes := file.stat().st_size) != entry.size:
        raise DownloadError(f"{entry.file} has {n_bytes:,} bytes, not {entry.size:,} as its index says")
    if (digest := sha256_of(file)) != entry.sha256:
        raise DownloadError(f"{entry.file} has the SHA-256 {digest}, not {entry.sha256} as its index says")
    if entry.key:
        signature = folder / "profile.gguf.minisig"
        try:
            _take(entry.signature, signature, _MAX_SIGNATURE)
        except DownloadError as error:
            raise DownloadError(f"{entry.file} is not signed, and its index has a key: {error}") from error
        verify(file, signature, entry.key, entry.file)
    try:
        profile = Profile.load(file)
    except ProfileError as error:
        raise ProfileError(str(error).replace(str(file), entry.file)) from error
    if (profile.name, profile.model.fingerprint) != (entry.name, entry.fingerprint):
        raise DownloadError(
            f"{entry.file} is the profile {profile.name!r} for {profile.model.name}, "
            f"not {entry.name!r} for {entry.model_name} as its index says"
        )
    return file


def _take(source: str, target: Path, limit: int, on_progress: Callable[[int, int], None] | None = None) -> None:
    if is_address(source) or source.startswith("hf:"):
        fetch(source, target, limit, on_progress=on_progress)
        return
    try:
        if Path(source).stat().st_size > limit:
            raise DownloadError(f"{source} has more than {limit:,} bytes, which is more than its index says")
        shutil.copyfile(source, target)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot read {source}: {(error.strerror or str(error)).lower()}") from error
