"""Fetching one file from the web or from a Hugging Face repository, in bounds, to a place of ours.

Servers are trusted as the operating system trusts them (truststore), and as `PIP_CERT` or `SSL_CERT_FILE` say besides.
"""

from __future__ import annotations

import base64
import errno
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from finesteer_local import __version__
from finesteer_local.distribution import missing_extra
from finesteer_local.errors import DownloadError, StorageError
from finesteer_local.paths import sha256_of

Progress = Callable[[int, int], None]
"""Called with the bytes downloaded so far and the bytes in all (0 where the server does not say)."""

_BLOCK = 1 << 18
_TIMEOUT = 30.0
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 1 << 14  # a server that sends less than that in this time has stalled
_HUB = re.compile(r"hf:([\w.-]{1,96})/([\w.-]{1,96})/([^@\\]{1,400}?)(?:@([\w./-]{1,100}))?")


def is_remote(source: str) -> bool:
    """Whether `source` is a URL or names a file of a Hugging Face repository (`hf:owner/repo/file`)."""
    return source.startswith("hf:") or "://" in source


def download(
    source: str,
    target: Path,
    *,
    limit: int,
    checked: bool,
    headers: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
    resume: bool = False,
) -> None:
    """Fetch `source` to `target`.

    Args:
        source: `https://...`, with `user:password@` where the server asks for them, or `hf:owner/repo/file`, with
            `@revision` where it is not the main one.
        limit: most bytes that are taken.
        checked: whether the caller knows the SHA-256; only then plain http is taken.
        headers: of the request, on the web; `Authorization` is for the named host alone.
        resume: `target` may hold the beginning already, and keeps what came when the rest fails.

    Raises:
        DownloadError: it cannot be fetched, stops half-way, is too large, or is not what the hub says it is.
        MissingExtraError: `hf:` without huggingface_hub.
    """
    if source.startswith("hf:"):
        _from_hub(source, target, limit)
    else:
        _from_web(source, target, limit, checked, headers or {}, on_progress, resume)


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to https, or from http to http: never to a file of this machine, never less safely."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after != "https" and (before, after) != ("http", "http"):
            raise DownloadError(f"cannot fetch {req.full_url}: it leads to {after or 'nowhere'}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(source: str, headers: Mapping[str, str]) -> urllib.request.Request:
    parts = urlsplit(source)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    for key, value in headers.items():
        if key.lower() == "authorization":
            request.add_unredirected_header(key, value)
        else:
            request.add_header(key, value)
    if user:
        name, _, password = user.partition(":")
        pair = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {pair}")  # for this host alone
    return request


def _trust() -> ssl.SSLContext:
    import truststore

    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in ("PIP_CERT", "SSL_CERT_FILE"):
        if (file := os.environ.get(name)) and os.path.isfile(file):
            context.load_verify_locations(file)
    return context


def _from_web(
    source: str,
    target: Path,
    limit: int,
    checked: bool,
    headers: Mapping[str, str],
    on_progress: Progress | None,
    resume: bool,
) -> None:
    try:
        request = _request(source, headers)
    except ValueError as error:
        raise DownloadError(f"cannot fetch {source}: {error}") from error
    url = request.full_url  # without the password
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("https", "http"):
        raise DownloadError(f"cannot fetch {url}: only https can be fetched, or hf:owner/repo/file")
    if scheme == "http" and not checked:
        raise DownloadError(f"cannot fetch {url}: http can be changed on its way; use https, or give --sha256")
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", f"finesteer-local/{__version__}")]
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_trust()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameSafety(),
    ):
        opener.add_handler(handler)
    have = target.stat().st_size if resume and target.is_file() else 0
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with opener.open(request, timeout=_TIMEOUT) as answer:
            if have and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                have = 0  # the server sends all of it again
            with target.open("ab" if have else "wb") as file:
                _receive(url, answer, file, have, limit, on_progress)
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        raise DownloadError(f"cannot fetch {url}: the server says {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"cannot write {target}: no space left on this disk; free some and try again") from error
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"cannot fetch {url}: {' '.join(str(reason).split())[:200]}") from error


def _receive(url: str, answer: Any, file: IO[bytes], done: int, limit: int, on_progress: Progress | None) -> None:
    """Write what comes to `file`, which has `done` bytes."""
    length = int(answer.headers.get("Content-Length") or 0)
    announced = done + length if length else 0
    if announced > limit:
        raise DownloadError(f"cannot fetch {url}: it has {announced:,} bytes, more than {limit:,}")
    since, then = time.monotonic(), done
    # read1: what is there now, so that a server that trickles is seen, and what came is on the disk.
    while block := answer.read1(_BLOCK):
        done += len(block)
        if done > limit:
            raise DownloadError(f"cannot fetch {url}: it has more than {limit:,} bytes")
        file.write(block)
        if on_progress:
            on_progress(done, announced)
        if time.monotonic() - since > _SLOW_SECONDS:
            if done - then < _SLOW_BYTES:
                raise DownloadError(f"cannot fetch {url}: the server has stalled; try again")
            since, then = time.monotonic(), done
    if announced and done != announced:
        raise DownloadError(f"cannot fetch {url}: it stopped at {done:,} of {announced:,} bytes; try again")


def _from_hub(source: str, target: Path, limit: int) -> None:
    match = _HUB.fullmatch(source)
    parts = match[3].split("/") if match else []
    if not match or any(part in ("", ".", "..") for part in (match[1], match[2], *parts)):
        raise DownloadError(f"{source!r} names no file of a repository; write hf:owner/repo/file")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise missing_extra("hub", "hf: needs huggingface_hub") from error
    repo = f"{match[1]}/{match[2]}"
    try:
        about = get_hf_file_metadata(hf_hub_url(repo, match[3], revision=match[4]), timeout=_TIMEOUT)
        if about.size is None or about.size > limit:
            raise DownloadError(
                f"cannot fetch {source}: it has {about.size or 0:,} bytes; a profile has up to {limit:,}"
            )
        # The commit that was asked about, so that what comes is what was announced.
        got = Path(hf_hub_download(repo, match[3], revision=about.commit_hash, local_dir=target.parent / "hub"))
    except DownloadError:
        raise
    except Exception as error:  # the hub's errors have many roots, and httpx's are beside them
        raise DownloadError(f"cannot fetch {source}: {' '.join(str(error).split())[:200]}") from error
    if got.stat().st_size != about.size:
        raise DownloadError(f"cannot fetch {source}: it has {got.stat().st_size:,} bytes, not {about.size:,}")
    # For large files the hub's etag is the SHA-256; for small ones git's own hash, which says less.
    if about.etag and re.fullmatch(r"[0-9a-f]{64}", about.etag) and sha256_of(got) != about.etag:
        raise DownloadError(f"cannot fetch {source}: it has another SHA-256 than the hub says")
    got.replace(target)
