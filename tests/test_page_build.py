"""The committed page is what its sources build, and all of it comes from the server alone."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[1] / "finesteer_local" / "server"
PAGE, STATIC = SERVER / "page", SERVER / "static"
SOURCES = ["index.html", "package-lock.json", "package.json", "public", "src", "tsconfig.json", "vite.config.ts"]


def digest(root: Path, names: list[str]) -> str:
    """As vite.config.ts computes it."""
    paths = [
        path for name in names for path in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))
    ]
    found = hashlib.sha256()
    for name in sorted(path.relative_to(root).as_posix() for path in paths if path.is_file()):
        text = (root / name).read_bytes().replace(b"\r\n", b"\n")
        found.update(name.encode() + b"\0" + text + b"\0")
    return found.hexdigest()


def test_the_page_is_built_from_these_sources() -> None:
    manifest = json.loads((STATIC / "build.json").read_text("utf-8"))
    rebuild = "run `npm ci && npm run build` in finesteer_local/server/page and commit ../static"
    assert manifest["sources"] == digest(PAGE, SOURCES), rebuild
    built = [path.name for path in STATIC.iterdir() if path.name != "build.json"]
    assert manifest["built"] == digest(STATIC, built), rebuild


def test_the_page_is_small_and_whole() -> None:
    names = {path.name for path in STATIC.iterdir()}
    assert names == {"build.json", "icon.svg", "index.html", "licenses.txt", "page.css", "page.js", "theme.js"}
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 320_000
    assert "sourceMappingURL" not in (STATIC / "page.js").read_text("utf-8")


def test_the_document_needs_no_inline_code_and_no_other_host() -> None:
    html = (STATIC / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", html)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(addresses) == 4
    for address in addresses:
        assert (STATIC / address.removeprefix("/static/").split("?")[0]).is_file()
    assert not re.search(r"url\(|@import", (STATIC / "page.css").read_text("utf-8"))


def test_the_page_ships_as_built(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="this environment builds no packages")
    root = SERVER.parents[1]
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    shipped = tmp_path / "finesteer_local" / "server"
    assert {path.name for path in (shipped / "static").iterdir()} == {path.name for path in STATIC.iterdir()}
    assert not (shipped / "page").exists()


def test_licences_of_what_is_bundled_are_there() -> None:
    text = (STATIC / "licenses.txt").read_text("utf-8")
    for name in ("preact", "@preact/signals", "marked", "lowlight", "highlight.js", "idb"):
        assert re.search(rf"^{re.escape(name)} \d", text, re.MULTILINE), name
