"""Models on the Hugging Face hub: `hf:owner/repo`, `hf:owner/repo:Q4_K_M`, `hf:owner/repo/file.gguf`, each `@revision`.

What is in the cache is taken without asking anybody. huggingface_hub lists a repository, knows the user's token and
keeps the cache; only the bytes of a large file are fetched here, because it starts them anew after an interruption.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from finesteer_local.distribution import missing_extra
from finesteer_local.download import download
from finesteer_local.errors import DownloadError, FineSteerError, ModelError, StorageError, UnknownNameError, one_line
from finesteer_local.paths import ensure_dir, sha256_of, size
from finesteer_local.sources import hub_cache
from finesteer_local.sources.found import FoundModel, Note, is_model_name
from finesteer_local.sources.quantisation import pick, quantisation_of
from finesteer_local.split_model import split_names

PREFIX, TITLE = hub_cache.PREFIX, hub_cache.TITLE
folders, models = hub_cache.folders, hub_cache.models

Progress = Callable[[int, int], None]

_GIVEN = re.compile(
    r"([\w.-]{1,96})/([\w.-]{1,96})(?:/([^@:\\]{1,400}\.gguf)|:([\w.-]{1,40}))?(?:@([\w./-]{1,100}))?", re.IGNORECASE
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT = 30.0  # seconds
_TRIES = 5  # in a row without a byte
_SPARE = 64 << 20  # bytes that stay free on the disk


@dataclass(frozen=True)
class Wanted:
    """What a user named: a repository, and perhaps a file, a quantisation or a revision of it."""

    given: str
    repo: str
    file: str = ""
    quantisation: str = ""
    revision: str = ""


@dataclass(frozen=True)
class _File:
    """A file of a repository. `sha256` is empty for a small one, which the hub knows by another hash."""

    name: str
    size: int
    sha256: str


def parse(given: str) -> Wanted:
    """Read a name, without its prefix.

    Raises:
        UnknownNameError: it is none.
    """
    match = _GIVEN.fullmatch(given)
    parts = [*(given.partition("@")[0].partition(":")[0].split("/")), *((match and match[5]) or "-").split("/")]
    if not match or any(part in ("", ".", "..") for part in parts):
        raise UnknownNameError(
            f"hf:{given} names no model; write hf:owner/repo, hf:owner/repo:Q4_K_M or hf:owner/repo/file.gguf"
        )
    return Wanted(f"hf:{given}", f"{match[1]}/{match[2]}", match[3] or "", (match[4] or "").upper(), match[5] or "")


def resolve(given: str, note: Note | None, on_progress: Progress | None = None, fresh: bool = False) -> Path:
    """The file in the cache, fetched where it is not there.

    Args:
        fresh: ask the hub even where the cache has it.

    Raises:
        UnknownNameError: no such name, repository, file or quantisation.
        ModelError: it holds no GGUF model, or none that fits into the memory.
        DownloadError: the hub cannot be reached, refuses, or sends something else.
        StorageError: no room for it.
        MissingExtraError: without huggingface_hub.
    """
    wanted = parse(given)
    cached = None if fresh else _cached(wanted, note)
    return cached or _fetched(wanted, note, on_progress)


def _cached(wanted: Wanted, note: Note | None) -> Path | None:
    here = [model for model in hub_cache.models(wanted.repo, wanted.revision) if not model.problem]
    if wanted.file:
        here = [model for model in here if model.own_name == f"{wanted.repo}/{wanted.file}"]
    elif wanted.quantisation:
        here = [model for model in here if model.quantisation == wanted.quantisation]
    if len(here) > 1:
        return pick(wanted.given, [(model.quantisation, model.size, model) for model in here], note).path
    return here[0].path if here else None


def _fetched(wanted: Wanted, note: Note | None, on_progress: Progress | None) -> Path:
    hub = _hub()
    with _explained(wanted):
        info = hub.HfApi().model_info(
            wanted.repo, revision=wanted.revision or None, files_metadata=True, timeout=_TIMEOUT
        )
        files = {
            each.rfilename: _File(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else "")
            for each in info.siblings or []
        }
    parts = _choose(wanted, files, note)
    cache = _cache(hub, wanted.repo)
    missing = [part for part in parts if not (part.sha256 and (cache / "blobs" / part.sha256).exists())]
    _check_room(wanted, cache, missing)
    total, before, paths = sum(part.size for part in parts), 0, []
    for part in parts:

        def report(done: int, _: int, before: int = before) -> None:
            if on_progress:
                on_progress(before + done, total)

        with _explained(wanted):
            if part in missing and _SHA256.fullmatch(part.sha256):
                _fetch_blob(hub, wanted, part, info.sha, cache / "blobs" / part.sha256, report)
            # Finds the blob, and notes file and revision as everything else that uses this cache does.
            path = Path(hub.hf_hub_download(wanted.repo, part.name, revision=wanted.revision or None))
        if path.stat().st_size != part.size:
            raise DownloadError(f"cannot fetch {wanted.given}: {part.name} has changed while it was fetched; try again")
        paths.append(path)
        before += part.size
    return paths[0]


def _choose(wanted: Wanted, files: dict[str, _File], note: Note | None) -> list[_File]:
    """The file, or all files of a split model, that suit what was asked for."""
    if wanted.file:
        if wanted.file not in files:
            raise UnknownNameError(f"{wanted.repo} has no file {wanted.file}; {_offer(wanted, files)}")
        return _all_parts(wanted, wanted.file, files)
    found = []
    for name in files:
        if is_model_name(name):
            parts = _all_parts(wanted, name, files)
            found.append((quantisation_of(PurePosixPath(name).name), sum(part.size for part in parts), parts))
    if not found:
        raise ModelError(f"{wanted.repo} holds no GGUF model; look for a repository whose name ends in GGUF")
    if wanted.quantisation:
        found = [choice for choice in found if choice[0] == wanted.quantisation]
        if not found:
            raise UnknownNameError(f"{wanted.repo} has no {wanted.quantisation}; {_offer(wanted, files)}")
        return found[0][2]
    return pick(wanted.given, found, note)


def _all_parts(wanted: Wanted, name: str, files: dict[str, _File]) -> list[_File]:
    path = PurePosixPath(name)
    names = [str(path.with_name(part)) for part in split_names(path.name)]
    missing = [part for part in names if part not in files]
    if missing:
        raise ModelError(f"{wanted.repo} lacks {missing[0]}, a part of {name}; choose another file")
    return [files[part] for part in names]


def _offer(wanted: Wanted, files: dict[str, _File]) -> str:
    names = sorted(filter(is_model_name, files))
    kinds = sorted({quantisation_of(PurePosixPath(name).name) for name in names} - {""})
    if kinds:
        return f"there are: {', '.join(kinds)}"
    return f"there are: {', '.join(names[:6])}" if names else "it holds no GGUF model"


def _check_room(wanted: Wanted, cache: Path, parts: Sequence[_File]) -> None:
    have = sum(_partial(cache / "blobs" / part.sha256).stat().st_size for part in parts if _has_partial(cache, part))
    need = sum(part.size for part in parts) - have
    folder = next(parent for parent in (cache, *cache.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if need and need + _SPARE > free:
        raise StorageError(
            f"no room for {wanted.given}: it needs {size(need)}, {folder} has {size(free)} left; "
            "free some, or set HF_HUB_CACHE to a folder on another disk"
        )


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.finesteer.incomplete")


def _has_partial(cache: Path, part: _File) -> bool:
    return bool(part.sha256) and _partial(cache / "blobs" / part.sha256).is_file()


def _fetch_blob(hub: Any, wanted: Wanted, part: _File, commit: str, blob: Path, report: Progress) -> None:
    """Fetch a file to where the cache has it, going on with what an interrupted try left."""
    from filelock import FileLock

    url = hub.hf_hub_url(wanted.repo, part.name, revision=commit)
    about = hub.get_hf_file_metadata(url, timeout=_TIMEOUT)  # says clearly where access must be asked for
    if about.etag != part.sha256 or about.size != part.size:
        raise DownloadError(f"cannot fetch {wanted.given}: the hub contradicts itself about {part.name}; try again")
    headers = {key: value for key, value in hub.utils.build_hf_headers().items() if key.lower() == "authorization"}
    partial = _partial(blob)
    ensure_dir(blob.parent)
    with FileLock(f"{partial}.lock"):
        if partial.is_file() and partial.stat().st_size > part.size:
            partial.unlink()
        tries = _TRIES
        while not (partial.is_file() and partial.stat().st_size == part.size):
            before = partial.stat().st_size if partial.is_file() else 0
            try:
                download(url, partial, limit=part.size, checked=True, headers=headers, on_progress=report, resume=True)
            except DownloadError as error:
                have = partial.stat().st_size if partial.is_file() else 0
                tries = _TRIES if have > before else tries - 1
                if tries == 0 or "the server says" in str(error):
                    kept = f"; {size(have)} are kept, the same command goes on from there" if have else ""
                    raise DownloadError(f"{error}{kept}") from error
        report(part.size, part.size)
        if sha256_of(partial) != part.sha256:
            partial.unlink()
            raise DownloadError(
                f"cannot fetch {wanted.given}: {part.name} has another SHA-256 than the hub says; try again"
            )
        os.replace(partial, blob)
    Path(f"{partial}.lock").unlink(missing_ok=True)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing_extra("hub", "hf: needs huggingface_hub") from error
    return huggingface_hub


def _cache(hub: Any, repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


@contextmanager
def _explained(wanted: Wanted) -> Iterator[None]:
    """Turn the hub's errors, which have many roots, into one line that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except FineSteerError:
        raise
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{wanted.repo}"
        raise DownloadError(
            f"{wanted.repo} is gated: ask for access on {page}, then log in with: hf auth login (or set HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownNameError(f"{wanted.repo} has no revision {wanted.revision or 'main'!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownNameError(
            f"the hub has no repository {wanted.repo}; if it is private, log in with: hf auth login (or set HF_TOKEN)"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{wanted.given} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or give a file"
        ) from error
    except OSError as error:
        if error.errno is not None and error.strerror:
            raise StorageError(f"cannot keep {wanted.given}: {error.strerror.lower()}") from error
        raise DownloadError(_unreachable(wanted, error)) from error
    except Exception as error:  # httpx's errors are beside them
        raise DownloadError(_unreachable(wanted, error)) from error


def _unreachable(wanted: Wanted, error: Exception) -> str:
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).netloc
    reason = one_line(str(error))[:200] or type(error).__name__
    return f"cannot fetch {wanted.given} from {host}: {reason}; try again later"


__all__ = ["PREFIX", "TITLE", "FoundModel", "folders", "models", "parse", "resolve"]
