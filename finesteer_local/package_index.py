"""Where the user's pip or uv takes packages from: the configured indexes, a wheel's address there (PEP 503, 691)."""

from __future__ import annotations

import html
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from configparser import Error as ConfigError
from configparser import RawConfigParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from finesteer_local.download import download
from finesteer_local.errors import DownloadError

PYPI = "https://pypi.org/simple"
_TYPES = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)""", re.IGNORECASE)
_LARGEST_PAGE = 64 << 20  # bytes


def find_wheel(package: str, version: str) -> str:
    """The address of a pure wheel in the first index that has it: http(s), or a file of this machine.

    Raises:
        DownloadError: no index has it, or none can be reached.
    """
    name = re.compile(rf"{re.escape(re.sub(r'[-_.]+', '_', package))}-{re.escape(version)}-[^-]+-none-any\.whl", re.I)
    failures = []
    for index in indexes():
        page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', package).lower()}/"
        try:
            for link in _links(page):
                if name.fullmatch(unquote(urlsplit(link).path).rpartition("/")[2]):
                    return _as_user(urljoin(page, link), index)
            failures.append(f"{_shown(index)} does not have it")
        except DownloadError as error:
            failures.append(str(error))
    raise DownloadError(f"cannot find {package} {version}: {'; '.join(failures)}")


def indexes() -> list[str]:
    """The addresses of the indexes: uv's variables, then pip's, then pip's configuration files; otherwise PyPI's."""
    pip = _pip_settings()
    first = (os.environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"))
    more = (os.environ.get(name) for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"))
    chosen = next(filter(None, first), None) or pip.get("index-url") or PYPI
    extra = " ".join(filter(None, more)) or pip.get("extra-index-url", "")
    named = re.compile(r"^[\w-]+=(?=[a-z]+:)")  # uv's NAME=URL
    return [named.sub("", each) for each in (chosen, *extra.split())]


def _pip_settings() -> dict[str, str]:
    """What pip's files say for `pip download`: the later of these files, and of these sections, wins."""
    from platformdirs import site_config_path, user_config_path

    if (given := os.environ.get("PIP_CONFIG_FILE")) == os.devnull:
        return {}
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    shared = [site_config_path("pip", appauthor=False)]
    if os.name != "nt" and sys.platform != "darwin":
        shared.append(Path("/etc"))
    own = [Path.home() / ".pip", user_config_path("pip", appauthor=False, roaming=True)]
    files = [*(folder / name for folder in (*shared, *own, Path(sys.prefix))), *([Path(given)] if given else [])]
    parser = RawConfigParser()
    for file in files:
        try:
            parser.read(file, encoding="utf-8")
        except (ConfigError, OSError, UnicodeDecodeError):
            continue  # pip itself would complain
    settings: dict[str, str] = {}
    for section in ("global", "download"):
        if parser.has_section(section):
            settings.update(parser.items(section))
    return settings


def _links(page: str) -> Iterator[str]:
    """The addresses on a project's page, as they stand there."""
    with tempfile.TemporaryDirectory() as folder:
        if urlsplit(page).scheme == "file":
            target = local_path(page) / "index.html"
            if not target.is_file():
                return
        else:
            target = Path(folder) / "page"
            # Whatever a page says, the wheel's own hash decides.
            download(page, target, limit=_LARGEST_PAGE, checked=True, headers={"Accept": _TYPES})
        text = target.read_text("utf-8", "replace")
    if text.lstrip().startswith("{"):
        try:
            yield from (str(file["url"]) for file in json.loads(text)["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{_shown(page)} is no page of a package index") from error
    else:
        yield from (html.unescape(link) for link in _LINK.findall(text))


def local_path(url: str) -> Path:
    """The path that a `file:` address names."""
    return Path(url2pathname(urlsplit(url).path))


def _as_user(link: str, index: str) -> str:
    """`link` without its hash, with the name and password of an index on the same host."""
    user, _, host = urlsplit(index).netloc.rpartition("@")
    parts = urlsplit(link)
    if user and parts.netloc == host:
        parts = parts._replace(netloc=f"{user}@{host}")
    return parts._replace(fragment="").geturl()


def _shown(url: str) -> str:
    """`url` without name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
