"""The index file: read, checked, and its addresses made whole. The format is that of docs/profile-index.md."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from finesteer_local.download import download
from finesteer_local.errors import DownloadError, one_line

FORMAT_VERSION = 1
FILE_NAME = "index.json"
MAX_PROFILE = 256 << 20  # bytes
_MAX_INDEX = 16 << 20  # bytes
_MAX_ENTRIES = 100_000
_MAX_TEXT = 4000
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HEX = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"RW[0-9A-Za-z+/]{54}")


@dataclass(frozen=True)
class Entry:
    """A profile of an index.

    Attributes:
        fingerprint: of the model it was trained for; `model_name` is what people call that.
        size, sha256: of the profile's file, in bytes and in hexadecimal.
        file: where it is: an address, or a path of this machine.
        signature: where its minisign signature is, in the same way.
        card: where its card is, empty where it has none.
        figures: what was measured, by name.
        index: the index that has it; `key` is the public key that this index signs with, empty where it has none.
    """

    name: str
    description: str
    license: str
    fingerprint: str
    model_name: str
    architecture: str
    size: int
    sha256: str
    file: str
    signature: str
    card: str
    index: str
    key: str
    figures: Mapping[str, float] = field(default_factory=dict)


def is_key(text: str) -> bool:
    """Whether `text` has the form of a public key of minisign's."""
    return bool(_KEY.fullmatch(text))


def index_file(place: str) -> str:
    """The index file of a place: a folder or an address stands for the `index.json` in it."""
    if is_address(place):
        return place if urlsplit(place).path.endswith(".json") else f"{place.rstrip('/')}/{FILE_NAME}"
    path = Path(place).expanduser()
    return str(path if path.suffix == ".json" else path / FILE_NAME)


def is_address(place: str) -> bool:
    """Whether a place is on the web, not a path."""
    return "://" in place


def fetch(source: str, target: Path, limit: int, **options: Any) -> None:
    """Fetch an address of an index to `target`, by https, or by http from this machine itself.

    Raises:
        DownloadError, StorageError, MissingExtraError: see `download`.
    """
    here = is_address(source) and urlsplit(source).hostname in ("127.0.0.1", "localhost", "::1")
    download(source, target, limit=limit, checked=here, **options)


def read_index(place: str) -> tuple[list[Entry], str]:
    """The entries of an index, and the public key that it names (empty where it names none).

    Raises:
        DownloadError: it cannot be read, or is not as an index is; the message names the field.
    """
    file = index_file(place)
    try:
        if is_address(file):
            with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
                fetch(file, Path(folder) / FILE_NAME, _MAX_INDEX)
                data = (Path(folder) / FILE_NAME).read_bytes()
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(_MAX_INDEX + 1)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot read the index {file}: {(error.strerror or str(error)).lower()}") from error
    return parse_index(data, file)


def parse_index(data: bytes, file: str) -> tuple[list[Entry], str]:
    """As `read_index`, from the bytes of the index file at `file`."""

    def wrong(what: str) -> DownloadError:
        return DownloadError(one_line(f"the index {file} cannot be used: {what}"))

    if len(data) > _MAX_INDEX:
        raise wrong(f"it has more than {_MAX_INDEX:,} bytes")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise wrong("it is no JSON") from error
    if not isinstance(content, dict) or "finesteer_index" not in content:
        raise wrong("it is no index of profiles (it has no finesteer_index)")
    version = content["finesteer_index"]
    if version != FORMAT_VERSION:
        raise wrong(f"its format is {version!r}, this version reads {FORMAT_VERSION}; update finesteer-local")
    key = content.get("key", "")
    if key and not (isinstance(key, str) and is_key(key)):
        raise wrong("key is no public key of minisign's")
    profiles = content.get("profiles")
    if not isinstance(profiles, list) or len(profiles) > _MAX_ENTRIES:
        raise wrong("profiles is no list")
    entries = []
    for i, raw in enumerate(profiles):
        try:
            entries.append(_entry(raw, file, key))
        except ValueError as error:
            raise wrong(f"profiles[{i}].{error}") from error
    return entries, key


def _entry(raw: Any, file: str, key: str) -> Entry:
    """Raises `ValueError` that begins with the field's name."""
    if not isinstance(raw, dict):
        raise ValueError("is no object")
    model = raw.get("model")
    if not isinstance(model, dict):
        raise ValueError("model is no object")

    def text(values: Mapping[str, Any], name: str, pattern: re.Pattern[str] | None = None) -> str:
        found = values.get(name, "")
        if not isinstance(found, str) or len(found) > _MAX_TEXT or (pattern and not pattern.fullmatch(found)):
            raise ValueError(f"{name} is missing or not as it should be")
        return one_line(found)

    n_bytes, figures = raw.get("size"), raw.get("figures", {})
    if not isinstance(n_bytes, int) or isinstance(n_bytes, bool) or not 0 < n_bytes <= MAX_PROFILE:
        raise ValueError(f"size is not within 1 and {MAX_PROFILE:,}")
    if not isinstance(figures, dict) or not all(isinstance(value, (int, float)) for value in figures.values()):
        raise ValueError("figures is no object of numbers")
    place = _whole(text(raw, "file"), file, "file")
    return Entry(
        name=text(raw, "name", _NAME),
        description=text(raw, "description"),
        license=text(raw, "license"),
        fingerprint=text(model, "fingerprint", _HEX),
        model_name=text(model, "name"),
        architecture=text(model, "architecture"),
        size=n_bytes,
        sha256=text(raw, "sha256", _HEX),
        file=place,
        signature=_whole(text(raw, "signature"), file, "signature") if raw.get("signature") else f"{place}.minisig",
        card=_whole(text(raw, "card"), file, "card") if raw.get("card") else "",
        index=file,
        key=key,
        figures={one_line(name)[:60]: float(value) for name, value in figures.items()},
    )


def _whole(given: str, index: str, field_name: str) -> str:
    """An address of an index, made whole: https, hf:, or a path below the index's own folder."""
    if given.startswith(("https://", "hf:")):
        return given
    parts = PurePosixPath(given).parts
    if not given or "\\" in given or ":" in given or given.startswith("/") or ".." in parts:
        raise ValueError(f"{field_name} is neither https://, nor hf:, nor a path below the index")
    return urljoin(index, given) if is_address(index) else str(Path(index).parent / given)
