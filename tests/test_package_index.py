"""A wheel is found where pip or uv would take it from."""

from __future__ import annotations

import base64
import json
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from finesteer_local import package_index
from finesteer_local.download import download
from finesteer_local.errors import DownloadError
from finesteer_local.package_index import find_wheel, indexes
from web import Answer, Server

WHEEL = "the_package-1.0-py3-none-any.whl"
OTHERS = ["the_package-1.0.tar.gz", "the_package-1.0.1-py3-none-any.whl", "other-1.0-py3-none-any.whl"]


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def html(*links: str) -> bytes:
    return "".join(f'<br/><a class="x"\n href="{link}#sha256=0">a file</a>' for link in links).encode()


def test_pypi_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert indexes() == ["https://pypi.org/simple"]
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://a/simple\nextra-index-url =\n  https://b\n  https://c\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert indexes() == ["https://a/simple", "https://b", "https://c"]
    config.write_text(config.read_text() + "[download]\nindex-url = https://d\n")
    assert indexes()[0] == "https://d"
    monkeypatch.setenv("PIP_INDEX_URL", "https://e")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://f https://g")
    assert indexes() == ["https://e", "https://f", "https://g"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "ours=https://h")
    monkeypatch.setenv("UV_INDEX", "more=https://i")
    assert indexes() == ["https://h", "https://i", "https://f", "https://g"]
    config.write_text("no configuration")
    assert indexes()[0] == "https://h"


@pytest.mark.parametrize("kind", ["html", "json"])
def test_the_page_of_a_project(web: Server, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple/")
    links = [f"../../files/{name}" for name in (*OTHERS, WHEEL)]
    page = html(*links) if kind == "html" else json.dumps({"files": [{"url": link} for link in links]}).encode()
    web.pages["/simple/the-package/"] = page
    assert find_wheel("The.package", "1.0") == f"{web.url}/files/{WHEEL}"
    with pytest.raises(DownloadError, match=r"^cannot find the-package 2\.0: http://\S+ does not have it$"):
        find_wheel("the-package", "2.0")
    web.pages["/simple/the-package/"] = b'{"files": 3}'
    with pytest.raises(DownloadError, match="is no page of a package index"):
        find_wheel("the-package", "1.0")


def test_the_first_index_that_has_it(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/a")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{web.url}/b {web.url}/c")
    for name in "bc":
        web.pages[f"/{name}/the-package/"] = html(f"{web.url}/{name}/{WHEEL}")
    assert find_wheel("the-package", "1.0") == f"{web.url}/b/{WHEEL}"


def test_an_index_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "an index" / "the-package"
    folder.mkdir(parents=True)
    (folder / "index.html").write_bytes(html(f"../../files/{WHEEL}"))
    monkeypatch.setenv("PIP_INDEX_URL", folder.parent.as_uri())
    found = find_wheel("the-package", "1.0")
    assert package_index.local_path(found) == tmp_path / "files" / WHEEL
    with pytest.raises(DownloadError, match="does not have it"):
        find_wheel("nobody", "1.0")


def only_for(user: str, answer: bytes) -> Answer:
    def page(request: BaseHTTPRequestHandler) -> None:
        known = request.headers.get("Authorization") == f"Basic {base64.b64encode(user.encode()).decode()}"
        request.send_response(200 if known else 401)
        request.send_header("Content-Length", str(len(answer) if known else 0))
        request.end_headers()
        request.wfile.write(answer if known else b"")

    return page


def test_an_index_with_a_password(web: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = web.url.removeprefix("http://")
    web.pages["/simple/the-package/"] = only_for("me:p@ss", html(f"/files/{WHEEL}", f"http://elsewhere/{OTHERS[1]}"))
    web.pages[f"/files/{WHEEL}"] = only_for("me:p@ss", b"wheel")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:p%40ss@{host}/simple")
    download(find_wheel("the-package", "1.0"), tmp_path / "it", limit=10, checked=True)
    assert (tmp_path / "it").read_bytes() == b"wheel"
    assert find_wheel("the-package", "1.0.1") == f"http://elsewhere/{OTHERS[1]}", "another host is told no password"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@{host}/simple")
    with pytest.raises(DownloadError, match="401") as error:
        find_wheel("the-package", "1.0")
    assert "wrong" not in str(error.value)
