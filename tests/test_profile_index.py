"""Indexes of profiles, in folders and from a server that lies, stalls, and serves wrong hashes."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cli import error_of, good, terminal
from finesteer_local import download, profile_index
from finesteer_local.errors import DownloadError, MissingExtraError, StorageError, UnknownNameError
from finesteer_local.paths import data_dir, profiles_dir
from finesteer_local.profile import Profile
from hub_server import hang_up
from tiny import make_profile, write_tiny_model
from web import Server

TRAINING = {
    "recipe": "loud",
    "data_hash": "d" * 64,
    "pairs": 12,
    "seed": 0,
    "model_file": "tiny-F32.gguf",
    "figures": {"answers": {"wanted": 0.9, "ended": 1.0}, "gate": {"auroc": 0.95, "recall": None, "openings": 0.02}},
}


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINESTEER_INDEX", raising=False)


@pytest.fixture
def profile(tiny: Path, tmp_path: Path) -> Path:
    made = make_profile(tiny, name="loud", description="Makes it | loud", license="Apache-2.0", training=TRAINING)
    made.save(tmp_path / "mine.gguf")
    return tmp_path / "mine.gguf"


@pytest.fixture
def public(profile: Path, tmp_path: Path) -> Path:
    """A folder as a publisher uploads it."""
    good("profiles", "pack", profile, "-o", tmp_path / "public", "--not-for", "whispering")
    return tmp_path / "public"


def serve(web: Server, folder: Path) -> str:
    """Put a folder onto the web; return its address."""
    for file in folder.iterdir():
        web.pages[f"/p/{file.name}"] = file.read_bytes()
    return f"{web.url}/p"


def changed(folder: Path, **fields: Any) -> bytes:
    """The folder's index with other values in its first entry."""
    content = json.loads((folder / "index.json").read_text())
    content["profiles"][0] |= fields
    return json.dumps(content).encode()


# --- packing ---


def test_what_a_publisher_uploads(public: Path, profile: Path, tiny: Path) -> None:
    model = Profile.load(profile).model
    base = f"loud.{model.fingerprint[:12]}"
    assert sorted(file.name for file in public.iterdir()) == [
        "index.json",
        f"{base}.gguf",
        f"{base}.gguf.sha256",
        f"{base}.md",
    ]
    assert (public / f"{base}.gguf").read_bytes() == profile.read_bytes()
    [entry], key = profile_index.read_index(str(public))
    assert key == ""
    assert (entry.name, entry.fingerprint, entry.license) == ("loud", model.fingerprint, "Apache-2.0")
    assert entry.size == profile.stat().st_size
    assert (public / f"{base}.gguf.sha256").read_text() == f"{entry.sha256}  {base}.gguf\n"
    assert entry.figures == {"wanted": 0.9, "ended": 1.0, "auroc": 0.95, "openings": 0.02}
    card = (public / f"{base}.md").read_text()
    for words in ("# loud for Tiny", "Apache-2.0", entry.sha256, model.fingerprint, "| AUROC of the gate | 0.950 |"):
        assert words in card
    for words in ("| recipe | loud |", "d" * 64, "- whispering", "as the only protection", "tiny-F32.gguf"):
        assert words in card


def test_the_index_is_as_its_schema_says(public: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(__file__).parents[1] / "docs" / "profile-index.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((public / "index.json").read_text()), schema)


def test_a_second_profile_joins_the_first(public: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.5, name="Other")
    make_profile(other, name="loud", license="MIT").save(tmp_path / "second.gguf")
    good("profiles", "pack", tmp_path / "second.gguf", "-o", public)
    good("profiles", "pack", tmp_path / "second.gguf", "-o", public)
    assert [entry.model_name for entry in profile_index.read_index(str(public))[0]] == ["Tiny", "Other"]
    assert "exists for several models (Other, Tiny); add --model MODEL" in error_of(
        "profiles", "get", "loud", "--index", public
    )
    assert good("profiles", "get", "loud", "--index", public, "--model", other).stdout.startswith("added ")


def test_what_cannot_be_packed(tiny: Path, profile: Path, tmp_path: Path) -> None:
    make_profile(tiny, name="bare").save(tmp_path / "bare.gguf")
    assert "'bare' has no license" in error_of("profiles", "pack", tmp_path / "bare.gguf", "-o", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    good("profiles", "pack", tmp_path / "bare.gguf", "-o", tmp_path / "licensed", "--license", "MIT")
    [entry] = profile_index.search(only=str(tmp_path / "licensed"))
    assert entry.license == Profile.load(Path(entry.file)).license == "MIT"
    assert "unknown profile 'nothing'" in error_of("profiles", "pack", "nothing", "-o", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "index.json").write_text("{}")
    assert "it is no index of profiles" in error_of("profiles", "pack", profile, "-o", tmp_path / "full")
    assert (tmp_path / "full" / "index.json").read_text() == "{}"


# --- searching and fetching ---


def test_from_a_folder(public: Path, tiny: Path) -> None:
    found = good("profiles", "search", tiny, "--index", public).output
    for word in ("loud", "Tiny", "Apache-2.0", "auroc"):
        assert word in found
    assert json.loads(good("profiles", "search", "--index", public, "--json").output)[0]["name"] == "loud"
    said = good("profiles", "get", "loud", "--index", public)
    kept = Path(said.stdout.removeprefix("added ").strip())
    assert kept.parent == profiles_dir()
    for words in ("Makes it | loud", "Apache-2.0", "not signed", "auroc 0.95"):
        assert words in said.stderr
    assert "already; replace or remove it first" in error_of("profiles", "get", "loud", "--index", public)
    good("profiles", "get", "loud", "--index", public, "--replace")


def test_from_the_web(web: Server, public: Path, tiny: Path, tmp_path: Path) -> None:
    url = serve(web, public)
    assert "loud" in good("profiles", "search", tiny, "--index", url).output
    asked = set(web.asked)
    assert asked == {"GET /p/index.json"}  # which model it is stays here
    good("profiles", "get", "loud", "--index", f"{url}/index.json", "--model", tiny)
    assert len(set(web.asked) - asked) == 1
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.5)
    assert "No index has a profile for" in good("profiles", "search", other, "--index", url).output
    assert "no index has a profile 'quiet'" in error_of("profiles", "get", "quiet", "--index", url)


def test_none_is_asked_that_was_not_named(
    web: Server, public: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(web, public)
    assert "no index of profiles is named; name one with --index, or add one" in error_of("profiles", "search", tiny)
    assert not data_dir().joinpath("indexes.json").exists()
    assert good("profiles", "index", "add", url).output == f"added {url} (1 profiles)\n"
    assert good("profiles", "index").output == f"{url} (added)\n"
    assert "loud" in good("profiles", "search", tiny).output
    monkeypatch.setenv("FINESTEER_INDEX", f" {public} , {url}")
    assert [index.place for index in profile_index.named_indexes()] == [str(public), url]
    assert "(FINESTEER_INDEX)" in good("profiles", "index", "list").output
    monkeypatch.delenv("FINESTEER_INDEX")
    assert good("profiles", "index", "rm", url).output == f"removed {url}\n"
    assert "was added; there are: none" in error_of("profiles", "index", "rm", url)
    assert "no index of profiles is named" in error_of("profiles", "get", "loud")


@pytest.mark.parametrize("place", ["ftp://x/y", "", "https://x#nokey", "file:///etc"])
def test_what_is_no_place_of_an_index(place: str) -> None:
    with pytest.raises(UnknownNameError):
        profile_index.add_index(place)


def test_http_is_for_this_machine_alone() -> None:
    assert "http can be changed on its way; use https" in error_of(
        "profiles", "search", "--index", "http://example.invalid/p"
    )


# --- a server at its worst ---


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sha256": "0" * 64}, f"not {'0' * 64} as its index says"),
        ({"size": 10}, "bytes, more than 10|more than 10 bytes"),
        ({"size": 200 << 20}, "bytes, not 209,715,200 as its index says"),
        ({"name": "quiet"}, "is the profile 'loud' for Tiny, not 'quiet' for Tiny as its index says"),
        ({"file": "none.gguf"}, "the server says 404"),
    ],
)
def test_wrong_entries(web: Server, public: Path, fields: dict[str, Any], words: str) -> None:
    import re

    url = serve(web, public)
    web.pages["/p/index.json"] = changed(public, **fields)
    message = error_of("profiles", "get", str(fields.get("name", "loud")), "--index", url)
    assert re.search(words, message), message
    assert not list(profiles_dir().glob("*"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "../x"}, "profiles[0].name"),
        ({"sha256": "abc"}, "profiles[0].sha256"),
        ({"size": -1}, "profiles[0].size"),
        ({"size": True}, "profiles[0].size"),
        ({"size": 1 << 40}, "profiles[0].size"),
        ({"model": "x"}, "profiles[0].model"),
        ({"model": {"fingerprint": "x"}}, "profiles[0].fingerprint"),
        ({"figures": {"a": "b"}}, "profiles[0].figures"),
        ({"description": "x" * 5000}, "profiles[0].description"),
        ({"file": "../../etc/passwd"}, "profiles[0].file is neither"),
        ({"file": "/etc/passwd"}, "profiles[0].file is neither"),
        ({"file": "file:///etc/passwd"}, "profiles[0].file is neither"),
        ({"file": "http://x/y"}, "profiles[0].file is neither"),
        ({"card": "ftp://x/y"}, "profiles[0].card is neither"),
    ],
)
def test_damaged_entries(public: Path, fields: dict[str, Any], words: str) -> None:
    (public / "index.json").write_bytes(changed(public, **fields))
    assert words in error_of("profiles", "search", "--index", public)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "it is no index of profiles"),
        (b'{"finesteer_index": 2, "profiles": []}', "its format is 2, this version reads 1; update"),
        (b'{"finesteer_index": 1, "profiles": {}}', "profiles is no list"),
        (b'{"finesteer_index": 1, "profiles": [], "key": "RWx"}', "key is no public key"),
        (b'{"finesteer_index": 1, "profiles": [1]}', "profiles[0].is no object"),
    ],
)
def test_damaged_indexes(web: Server, content: bytes, words: str) -> None:
    web.pages["/p/index.json"] = content
    assert words in error_of("profiles", "search", "--index", f"{web.url}/p")


def test_a_server_that_stalls(web: Server, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(web, public)

    def silent(request: BaseHTTPRequestHandler) -> None:
        time.sleep(3)
        hang_up(request)

    def trickles(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        for _ in range(200):
            try:
                request.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.02)

    monkeypatch.setattr(download, "_TIMEOUT", 0.5)
    monkeypatch.setattr(download, "_SLOW_SECONDS", 0.3)
    web.pages["/p/index.json"] = silent
    assert "timed out" in error_of("profiles", "search", "--index", url)
    web.pages["/p/index.json"] = trickles
    assert "the server has stalled; try again" in error_of("profiles", "search", "--index", url)
    web.pages["/p/index.json"] = hang_up
    assert "cannot fetch" in error_of("profiles", "search", "--index", url)


def test_another_index_goes_on(web: Server, public: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    monkeypatch.setenv("FINESTEER_INDEX", f"{web.url}/none,{public}")
    with pytest.raises(DownloadError, match="404"):
        profile_index.search("loud")
    assert len(profile_index.search("loud", on_failure=failures.append)) == 1
    assert "404" in failures[0]


# --- signatures ---


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A secret key without a password."""
    minisign = pytest.importorskip("minisign", reason="signatures need py-minisign: pip install py-minisign")
    for name in ("one.key", "two.key"):
        (tmp_path / name).write_bytes(bytes(minisign.KeyPair.generate().secret_key) + b"\n")
    return tmp_path / "one.key"


def signed(profile: Path, folder: Path, key: Path) -> str:
    """Pack and sign; returns the public key."""
    said = good("profiles", "pack", profile, "-o", folder, "--key", key).stderr
    return said.partition("the public key is ")[2].split()[0]


def test_signed(web: Server, profile: Path, keys: Path, tmp_path: Path) -> None:
    key = signed(profile, tmp_path / "signed", keys)
    url = serve(web, tmp_path / "signed")
    said = good("profiles", "get", "loud", "--index", f"{url}#{key}")
    assert f"signed with {key}" in said.stderr
    # Another file in place of the profile, with its own hash in the index, but the old signature.
    make = Profile.load(profile)
    name = json.loads(web.pages["/p/index.json"])["profiles"][0]["file"]  # type: ignore[arg-type]
    signature = web.pages[f"/p/{name}.minisig"]
    forged = tmp_path / "forged"
    forged.mkdir()
    from dataclasses import replace

    replace(make, description="forged").save(tmp_path / "forged.gguf")
    good("profiles", "pack", tmp_path / "forged.gguf", "-o", forged, "--key", keys.with_name("two.key"))
    serve(web, forged)
    assert "has another key than before" in error_of("profiles", "get", "loud", "--index", url, "--replace")
    content = json.loads((forged / "index.json").read_text()) | {"key": key}
    web.pages["/p/index.json"] = json.dumps(content).encode()
    for bad in (web.pages[f"/p/{name}.minisig"], signature, b"nonsense"):
        web.pages[f"/p/{name}.minisig"] = bad
        message = error_of("profiles", "get", "loud", "--index", url, "--replace")
        assert "is not by its index's key" in message and "it was not added" in message
    del web.pages[f"/p/{name}.minisig"]
    assert "is not signed, and its index has a key" in error_of("profiles", "get", "loud", "--index", url, "--replace")
    del content["key"]
    web.pages["/p/index.json"] = json.dumps(content).encode()
    assert "has another key than before (none)" in error_of("profiles", "get", "loud", "--index", url, "--replace")
    good("profiles", "index", "rm", url)
    good("profiles", "get", "loud", "--index", url, "--replace")


def test_packing_keeps_to_one_key(profile: Path, keys: Path, tmp_path: Path) -> None:
    signed(profile, tmp_path / "signed", keys)
    with pytest.raises(StorageError, match="signed with another key"):
        profile_index.pack_profile(profile, tmp_path / "signed", key_file=keys.with_name("two.key"))
    with pytest.raises(StorageError, match="signed with another key"):
        profile_index.pack_profile(profile, tmp_path / "signed")
    assert "cannot read the key" in error_of(
        "profiles", "pack", profile, "-o", tmp_path / "y", "--key", tmp_path / "no"
    )
    (tmp_path / "bad.key").write_text("x\ny\n")
    assert "cannot sign with" in error_of(
        "profiles", "pack", profile, "-o", tmp_path / "y", "--key", tmp_path / "bad.key"
    )


def test_a_key_with_a_password(profile: Path, keys: Path, tmp_path: Path) -> None:
    import minisign

    secret = minisign.SecretKey.from_file(keys)
    secret.encrypt("correct horse", opslimit=32768, memlimit=1 << 20)
    keys.write_bytes(bytes(secret) + b"\n")
    good("profiles", "pack", profile, "-o", tmp_path / "s", "--key", keys, stdin="correct horse\n")
    assert "cannot sign with" in error_of(
        "profiles", "pack", profile, "-o", tmp_path / "t", "--key", keys, stdin="wrong\n"
    )


def test_without_py_minisign(profile: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed(profile, tmp_path / "signed", keys)
    monkeypatch.setitem(__import__("sys").modules, "minisign", None)
    [entry] = profile_index.search("loud", only=str(tmp_path / "signed"))
    with pytest.raises(MissingExtraError, match=r"\(extra sign\); install with: "):
        profile_index.fetch_entry(entry, tmp_path)


# --- chat ---


def test_chat_offers_the_indexs(public: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESTEER_INDEX", str(public))
    message = error_of("chat", tiny, "--profile", "loud", "--max-tokens", "2", stdin="hello\n")
    assert f"{public}/index.json has one; add --yes to fetch it, or: finesteer-local profiles get loud" in message
    assert not list(profiles_dir().glob("*"))
    good("chat", tiny, "--profile", "loud", "--yes", "--max-tokens", "2", stdin="hello\n")
    assert len(list(profiles_dir().glob("loud.*.gguf"))) == 1


def test_chat_asks(public: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESTEER_INDEX", str(public))
    with terminal("chat", tiny, "--profile", "loud") as screen:
        assert "auroc 0.95" in screen.wait_for("Fetch it from")
        screen.type("n\n")
        screen.wait_for("unknown profile 'loud'")
        assert screen.exit_code() == 1
    with terminal("chat", tiny, "--profile", "loud") as screen:
        screen.wait_for("Fetch it from")
        screen.type("y\n")
        screen.wait_for("/help")
        screen.type("/quit\n")
        screen.exit_code()
    assert list(profiles_dir().glob("loud.*.gguf"))


def test_chat_goes_on_without_an_index(web: Server, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINESTEER_INDEX", f"{web.url}/none")
    assert "add --yes to train it now" in error_of("chat", tiny, "--profile", "safety", stdin="hello\n")
    monkeypatch.delenv("FINESTEER_INDEX")
    web.asked.clear()
    error_of("chat", tiny, "--profile", "safety", stdin="hello\n")
    assert not web.asked
