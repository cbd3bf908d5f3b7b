"""Where files live on this machine, and how a file is written without ever being seen half-written.

The folders follow the platform's habits (platformdirs). `FINESTEER_HOME` puts everything below one folder instead:
`cache/` for what can be fetched again, `data/` for what the user made. Asking for a path creates nothing.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from finesteer_local.errors import FineSteerError, StorageError

_APP = "finesteer-local"


def _home() -> Path | None:
    home = os.environ.get("FINESTEER_HOME")
    return Path(home).expanduser().absolute() if home else None


def cache_dir() -> Path:
    """Everything that can be fetched or computed again."""
    home = _home()
    return home / "cache" if home else user_cache_path(_APP, appauthor=False)


def data_dir() -> Path:
    """Everything the user made."""
    home = _home()
    return home / "data" if home else user_data_path(_APP, appauthor=False)


def models_dir() -> Path:
    """Pulled models, and GGUF files the user dropped here to call them by name."""
    return cache_dir() / "models"


def profiles_dir() -> Path:
    """The user's own profiles, as `<name>.<first 12 digits of the model's fingerprint>.gguf`."""
    return data_dir() / "profiles"


def work_dir() -> Path:
    """Training runs that were interrupted and can go on."""
    return data_dir() / "work"


def evaluations_dir() -> Path:
    """Answers that an evaluation has from the models, so that an interrupted one goes on."""
    return cache_dir() / "evaluations"


def history_file() -> Path:
    """What the user typed in `chat`."""
    return data_dir() / "history"


def ensure_dir(path: Path) -> Path:
    """Create the folder and its parents where they are missing, and return it.

    Raises:
        StorageError: it cannot be created, or a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the folder {path}: {_reason(error)}") from error
    return path


_unfinished: set[Path] = set()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside `path` (it exists and is empty); it becomes `path` when the block ends well.

    Whatever ends the block early, Ctrl-C included, leaves `path` as it was and no temporary file behind. A missing
    folder is created: what was computed for minutes is not lost to a folder that is not there. A symbolic link stays
    one: the file it points to is replaced.

    Raises:
        StorageError: an `OSError` in here or in the block, such as no space or no right. Errors of our own family pass.
    """
    target = Path(os.path.realpath(path))
    temporary = _temporary(target.parent)
    try:
        _check_kind(path, target)
        ensure_dir(target.parent)
        # Not tempfile: its files are readable by their owner alone, whatever the umask says.
        _unfinished.add(temporary)
        temporary.open("xb").close()
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except FineSteerError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {os.fspath(path)}: {_reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        _unfinished.discard(temporary)


def discard_unfinished() -> None:
    """Remove the temporary files of every `atomic_write` that is under way, for a process that has to end at once."""
    for temporary in tuple(_unfinished):
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Fail where `atomic_write(path)` could not even begin: better before the work than after it. Leaves no file.

    Raises:
        StorageError: a folder or a device is in the way, or a file cannot be made there.
    """
    target = Path(os.path.realpath(path))
    try:
        _check_kind(path, target)
        temporary = _temporary(next(parent for parent in target.parents if parent.exists()))
        temporary.open("xb").close()
        temporary.unlink()
    except FineSteerError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {os.fspath(path)}: {_reason(error)}") from error


def _temporary(folder: Path) -> Path:
    return folder / f".finesteer-{uuid.uuid4().hex[:12]}.tmp"


def _check_kind(path: str | os.PathLike[str], target: Path) -> None:
    if target.exists() and not target.is_file():
        # Replacing would turn /dev/null into a file for everyone.
        raise StorageError(
            f"cannot write {os.fspath(path)}: it is {'a folder' if target.is_dir() else 'no plain file'}"
        )


def size(n_bytes: int) -> str:
    """`98 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.{0 if n_bytes >= 10 * factor else 1}f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
