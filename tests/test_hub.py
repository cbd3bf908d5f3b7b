"""`hf:` models, from a server that plays the hub."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cli import command_line, error_of, good
from finesteer_local import catalog
from finesteer_local.errors import DownloadError, MissingExtraError, ModelError, StorageError, UnknownNameError
from finesteer_local.sources import hub as hub_source
from finesteer_local.sources import quantisation
from hub_server import Hub, hang_up
from web import Server

constants = pytest.importorskip("huggingface_hub.constants")
pytest.importorskip("huggingface_hub.file_download")


@pytest.fixture
def data(tiny: Path) -> bytes:
    return tiny.read_bytes()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def hub(web: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that the library asks, and a cache of this test alone."""
    from huggingface_hub import HfApi

    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("LLAMA_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", web.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=web.url))
    monkeypatch.setattr(quantisation, "available_memory", lambda: 8 << 30)
    return Hub(web)


def refused(given: str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        catalog.resolve_model(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_picks_what_suits_this_machine(hub: Hub, cache: Path, data: bytes) -> None:
    hub.add(
        "o/m-GGUF", {"README.md": b"#", "m-Q4_K_M.gguf": data, "m-F16.gguf": data + b"f", "mmproj-m-F16.gguf": b"p"}
    )
    hub.sizes = {"m-F16.gguf": 20 << 30, "m-Q4_K_M.gguf": len(data)}
    result = good("run", "hf:o/m-GGUF", "hello", "--max-tokens", "3")
    assert result.stdout
    assert "hf:o/m-GGUF: Q4_K_M, 639 kB: it fits into 8.6 GB of free memory" in result.stderr
    assert "There are also: F16" in result.stderr
    path = catalog.resolve_model("hf:o/m-GGUF")
    assert path == cache / "models--o--m-GGUF" / "snapshots" / ("c" * 40) / "m-Q4_K_M.gguf"
    assert path.read_bytes() == data
    assert (cache / "models--o--m-GGUF" / "refs" / "main").read_text() == "c" * 40


def test_what_is_here_is_taken_without_asking(hub: Hub, web: Server, data: bytes) -> None:
    hub.add("o/m", {"m-Q8_0.gguf": data, "m-Q4_0.gguf": data + b"4"})
    first = catalog.resolve_model("hf:o/m/m-Q8_0.gguf")
    web.asked.clear()
    for name in ("hf:o/m", "hf:o/m:Q8_0", "hf:o/m/m-Q8_0.gguf", f"hf:o/m@{'c' * 40}"):
        assert catalog.resolve_model(name) == first
    assert not web.asked
    assert good("models", "pull", "hf:o/m:q4_0").output.strip().endswith("m-Q4_0.gguf")
    assert web.asked


def test_split_models(hub: Hub, data: bytes) -> None:
    hub.add("o/big", {f"q4/big-Q4_K_M-0000{i}-of-00002.gguf": data + bytes([i]) for i in (1, 2)})
    done = []
    path = catalog.resolve_model("hf:o/big", lambda *now: done.append(now))
    assert path.name == "big-Q4_K_M-00001-of-00002.gguf"
    assert path.with_name("big-Q4_K_M-00002-of-00002.gguf").read_bytes() == data + b"\2"
    assert done[-1] == (2 * len(data) + 2, 2 * len(data) + 2)
    hub.add("o/half", {"big-Q4_K_M-00001-of-00002.gguf": data})
    assert "o/half lacks big-Q4_K_M-00002-of-00002.gguf" in refused("hf:o/half", ModelError)


def test_goes_on_where_it_stopped(hub: Hub, cache: Path, data: bytes) -> None:
    hub.add("o/m", {"m.gguf": data})
    hub.stops_after, hub.n_stops = len(data) // 3, 2
    assert catalog.resolve_model("hf:o/m").read_bytes() == data
    assert hub.ranges == [f"bytes={len(data) // 3}-", f"bytes={len(data) // 3 * 2}-"]
    assert not list(cache.rglob("*.incomplete*"))


def test_goes_on_after_an_interruption(hub: Hub, cache: Path, data: bytes) -> None:
    hub.add("o/m", {"m.gguf": data})

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.resolve_model("hf:o/m", interrupt)
    [partial] = cache.rglob("*.incomplete")
    have = partial.stat().st_size
    assert have > 0
    partial.write_bytes(partial.read_bytes()[:1000])
    assert catalog.resolve_model("hf:o/m").read_bytes() == data
    assert hub.ranges == ["bytes=1000-"]


def test_a_server_that_keeps_stopping(hub: Hub, cache: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("o/m", {"m.gguf": data})
    hub.server.pages["/cdn/o/m/m.gguf"] = hang_up
    assert "cannot fetch" in refused("hf:o/m", DownloadError)
    hub.add("o/m", {"m.gguf": data})
    assert catalog.resolve_model("hf:o/m").read_bytes() == data


def test_another_content_than_announced(hub: Hub, cache: Path, data: bytes) -> None:
    hub.add("o/m", {"m.gguf": data})
    hub.lies = {"m.gguf"}
    assert "m.gguf has another SHA-256 than the hub says; try again" in refused("hf:o/m", DownloadError)
    assert not list(cache.rglob("*.incomplete")) and not list(cache.rglob("*.gguf"))
    hub.lies = set()
    assert catalog.resolve_model("hf:o/m").read_bytes() == data


def test_gated(hub: Hub, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("meta/gated", {"m.gguf": data})
    hub.gated = {"meta/gated"}
    assert refused("hf:meta/gated", DownloadError) == (
        f"meta/gated is gated: ask for access on {hub.server.url}/meta/gated, "
        "then log in with: hf auth login (or set HF_TOKEN)"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert catalog.resolve_model("hf:meta/gated").read_bytes() == data
    assert set(hub.tokens) == {None}  # the other host learns no token


def test_what_is_not_there(hub: Hub, web: Server, data: bytes) -> None:
    web.pages["/api/models/o/none"] = missing
    assert "the hub has no repository o/none; if it is private, log in with" in refused("hf:o/none", UnknownNameError)
    hub.add("o/safe", {"model.safetensors": b"x", "mmproj-F16.gguf": b"y"})
    assert "o/safe holds no GGUF model" in refused("hf:o/safe", ModelError)
    hub.add("o/m", {"m-Q4_0.gguf": data, "m-Q8_0.gguf": data})
    assert refused("hf:o/m:Q5_K_M", UnknownNameError) == "o/m has no Q5_K_M; there are: Q4_0, Q8_0"
    assert "o/m has no file x.gguf; there are: Q4_0, Q8_0" in refused("hf:o/m/x.gguf", UnknownNameError)


def missing(request: object) -> None:
    request.send_response(404)  # type: ignore[attr-defined]
    request.send_header("X-Error-Code", "RepoNotFound")  # type: ignore[attr-defined]
    request.send_header("Content-Length", "0")  # type: ignore[attr-defined]
    request.end_headers()  # type: ignore[attr-defined]


def test_offline(hub: Hub, web: Server, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("o/m", {"m.gguf": data})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to fetch it" in refused("hf:o/m", DownloadError)
    assert not web.asked


def test_nobody_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    assert "cannot fetch hf:o/m from 127.0.0.1:9" in refused("hf:o/m", DownloadError)


def test_no_room(hub: Hub, cache: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("o/m", {"m.gguf": data})
    hub.sizes = {"m.gguf": 5 << 30}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3 << 30}))
    assert "no room for hf:o/m: it needs 5.4 GB" in refused("hf:o/m", StorageError)
    assert "set HF_HUB_CACHE to a folder on another disk" in refused("hf:o/m", StorageError)
    assert not list(cache.rglob("*.incomplete"))


def test_without_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("LLAMA_CACHE", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "(extra hub); install with: " in refused("hf:o/m", MissingExtraError)


@pytest.mark.parametrize(
    "name",
    ["", "m", "o/", "/m", "o/m/", "../m", "o/..", "o/m/../x.gguf", "o/m/x.bin", "o/m:", "o/m@", "o/m@../x", "o/m:Q4/x"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match="names no model; write hf:owner/repo"):
        hub_source.parse(name)


def test_as_a_program(hub: Hub, web: Server, tmp_path: Path, data: bytes) -> None:
    """With the variables that users set."""
    hub.add("o/m", {"m-Q8_0.gguf": data})
    hub.gated = {"o/m"}
    environment = {**os.environ, "HF_ENDPOINT": web.url, "HF_TOKEN": hub.token, "HF_HUB_CACHE": str(tmp_path / "other")}
    asked = [*command_line("models", "pull", "hf:o/m")]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == data
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(asked, env=offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "HF_HUB_OFFLINE" in done.stderr
    used = subprocess.run(command_line("inspect", "hf:o/m"), env=offline, capture_output=True, text=True, timeout=300)
    assert used.returncode == 0, used.stderr


def test_mistakes(hub: Hub) -> None:
    assert "or give hf:owner/repo" in error_of("models", "pull", "zzz")
