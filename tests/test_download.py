"""`profiles add` from elsewhere: a web server of our own, and a hub that speaks as Hugging Face's does."""

from __future__ import annotations

import hashlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cli import error_of, good, terminal
from finesteer_local import catalog, download
from finesteer_local.errors import DownloadError, MissingExtraError, StorageError
from finesteer_local.paths import profiles_dir
from tiny import make_profile
from web import Answer, Server


@pytest.fixture
def profile(tiny: Path, tmp_path: Path) -> bytes:
    make_profile(tiny, name="loud", description="Makes it loud").save(tmp_path / "file.gguf")
    return (tmp_path / "file.gguf").read_bytes()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_from_the_web(web: Server, profile: bytes) -> None:
    web.pages["/loud.gguf"] = profile
    url = f"{web.url}/loud.gguf"
    said = good("profiles", "add", url, "--sha256", sha(profile).upper())
    assert said.stdout.startswith("added ")
    for word in ("loud", "Makes it loud", "Tiny (llama, 4 layers, 64 wide)", "layer 2", sha(profile)):
        assert word in said.stderr
    kept = Path(said.stdout.removeprefix("added ").strip())
    assert kept.read_bytes() == profile and kept.parent == profiles_dir()
    assert "already; replace or remove it first" in error_of("profiles", "add", url, "--sha256", sha(profile))
    good("profiles", "add", url, "--sha256", sha(profile), "--replace")


def test_hashes(web: Server, profile: bytes) -> None:
    web.pages["/loud.gguf"] = profile
    url = f"{web.url}/loud.gguf"
    assert f"has the SHA-256 {sha(profile)}, not {'0' * 64}; it was not added" in error_of(
        "profiles", "add", url, "--sha256", "0" * 64
    )
    assert "http can be changed on its way; use https, or give --sha256" in error_of("profiles", "add", url)
    assert "64 hexadecimal digits" in error_of("profiles", "add", url, "--sha256", "abc", code=2)
    assert not list(profiles_dir().glob("*"))


def test_the_web_at_its_worst(web: Server, profile: bytes, tmp_path: Path) -> None:
    def leads_to(location: str) -> Answer:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(302)
            request.send_header("Location", location)
            request.end_headers()

        return answer

    def stops(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"GGUF")

    def announces_much(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(1 << 40))
        request.end_headers()

    def sends_much(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"x" * 5000)

    web.pages |= {
        "/file": leads_to("file:///etc/passwd"),
        "/ftp": leads_to("ftp://127.0.0.1/x"),
        "/on": leads_to("/good"),
        "/round": leads_to("/round"),
        "/good": profile,
        "/stops": stops,
        "/announces": announces_much,
        "/sends": sends_much,
        "/html": b"<html>",
    }

    def fetch(source: str, checked: bool = True, limit: int = 4000 + len(profile)) -> bytes:
        download.download(source, tmp_path / "got", limit=limit, checked=checked)
        return (tmp_path / "got").read_bytes()

    assert fetch(f"{web.url}/on") == profile
    for page, words in {
        "/file": "not allowed|not safe",
        "/ftp": "leads to ftp, which is not safe",
        "/round": "error|loop|redirect",
        "/none": "the server says 404",
        "/stops": "stopped at 4 of 1,000 bytes|IncompleteRead",
        "/announces": " bytes, more than ",
    }.items():
        with pytest.raises(DownloadError, match=words):
            fetch(f"{web.url}{page}")
    with pytest.raises(DownloadError, match="more than 4,000 bytes"):
        fetch(f"{web.url}/sends", limit=4000)
    with pytest.raises(DownloadError, match="cannot fetch"):
        fetch("http://127.0.0.1:9/none")
    for source in ("file:///etc/passwd", "ftp://x/y", "data://x"):
        with pytest.raises(DownloadError, match="only https can be fetched"):
            fetch(source)
    assert "not a GGUF file" in error_of("profiles", "add", f"{web.url}/html", "--sha256", sha(b"<html>"))


@pytest.mark.parametrize(
    "source",
    [
        "hf:",
        "hf:a",
        "hf:a/b",
        "hf:a/b/",
        "hf:a/b/../c",
        "hf:../b/c",
        "hf:a/b//c",
        "hf:a/b/./c",
        "hf:a/b/c\\d",
        "hf:a b/c/d",
    ],
)
def test_names_that_are_no_hub_files(source: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="names no file of a repository"):
        download.download(source, tmp_path / "x", limit=1000, checked=False)


def test_without_the_hub_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"\(extra hub\); install with: "):
        download.download("hf:a/b/c.gguf", tmp_path / "x", limit=1000, checked=False)


def test_from_the_hub(web: Server, profile: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("huggingface_hub.file_download")
    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", web.url + "/{repo_id}/resolve/{revision}/{filename}")
    state = {"etag": sha(profile), "body": profile}
    commit = "c" * 40

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("X-Repo-Commit", commit)
        request.send_header("ETag", f'"{state["etag"]}"')
        request.send_header("Content-Length", str(len(state["body"])))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(state["body"])

    for revision in ("main", "v1", commit):
        web.pages[f"/me/profiles/resolve/{revision}/safe/loud.gguf"] = answer
    assert good("profiles", "add", "hf:me/profiles/safe/loud.gguf").stdout.startswith("added ")
    good("profiles", "add", "hf:me/profiles/safe/loud.gguf@v1", "--replace")
    assert any(f"GET /me/profiles/resolve/{commit}/safe/loud.gguf" in asked for asked in web.asked)
    state["etag"] = "0" * 64
    assert "another SHA-256 than the hub says" in error_of(
        "profiles", "add", "hf:me/profiles/safe/loud.gguf", "--replace"
    )
    message = error_of("profiles", "add", "hf:me/profiles/none.gguf")
    assert "cannot fetch hf:me/profiles/none.gguf" in message
    with pytest.raises(DownloadError, match="a profile has up to 10"):
        download.download("hf:me/profiles/safe/loud.gguf", tmp_path / "x", limit=10, checked=False)


def test_asks_before_replacing(profile: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.gguf"
    kept = catalog.add_profile(file)
    kept.write_bytes(b"mine")
    with terminal("profiles", "add", file) as screen:
        shown = screen.wait_for("Replace it?")
        assert "another one" in shown
        screen.type("n\n")
        screen.wait_for("Nothing was changed")
        assert screen.exit_code() == 0
    assert kept.read_bytes() == b"mine"
    with terminal("profiles", "add", file) as screen:
        screen.wait_for("Replace it?")
        screen.type("y\n")
        screen.wait_for("added ")
        assert screen.exit_code() == 0
    assert kept.read_bytes() == profile


def test_a_link_in_the_store_is_not_followed(profile: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file.gguf"
    kept = catalog.add_profile(file)
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    kept.unlink()
    kept.symlink_to(outside)
    for replace in (False, True):
        with pytest.raises(StorageError, match="is a link; remove it first"):
            catalog.add_profile(file, replace=replace)
    assert outside.read_bytes() == b"precious"


def test_goes_on_where_it_stopped(web: Server, tmp_path: Path) -> None:
    """With a server that sends the rest, and one that sends all of it again."""
    data = bytes(range(256)) * 40

    def rest(request: BaseHTTPRequestHandler) -> None:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start:])

    web.pages |= {"/rest": rest, "/all": data}
    for page in ("/rest", "/all"):
        target = tmp_path / page[1:]
        target.write_bytes(data[:1000])
        seen: list[tuple[int, int]] = []
        download.download(
            f"{web.url}{page}",
            target,
            limit=len(data),
            checked=True,
            resume=True,
            on_progress=lambda *now, seen=seen: seen.append(now),
        )
        assert target.read_bytes() == data
        assert seen[-1] == (len(data), len(data))


def test_a_password_stays_with_its_host(web: Server, tmp_path: Path) -> None:
    learnt: list[str | None] = []

    def leads_on(request: BaseHTTPRequestHandler) -> None:
        learnt.append(request.headers.get("Authorization"))
        request.send_response(302)
        request.send_header("Location", f"{web.url.replace('127.0.0.1', 'localhost')}/there")
        request.end_headers()

    def there(request: BaseHTTPRequestHandler) -> None:
        learnt.append(request.headers.get("Authorization"))
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"x")

    web.pages |= {"/here": leads_on, "/there": there}
    headers = {"Authorization": "Bearer secret"}
    download.download(f"{web.url}/here", tmp_path / "got", limit=10, checked=True, headers=headers)
    assert learnt == ["Bearer secret", None]
