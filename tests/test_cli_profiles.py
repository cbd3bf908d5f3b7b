"""`profiles`: list, show, add, rm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import error_of, good
from finesteer_local import catalog
from tiny import make_profile, write_tiny_model


@pytest.fixture(autouse=True)
def no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test adds is there."""
    monkeypatch.setattr(catalog, "_bundle", lambda: tmp_path)


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "file.gguf"
    make_profile(tiny, name="loud", description="Makes it loud").save(path)
    return path


def test_add_list_show_rm(file: Path, tiny: Path) -> None:
    assert good("profiles").output == "No profiles yet. Train one with: finesteer-local train MODEL --recipe safety\n"
    assert good("profiles", "add", file).stdout.startswith("added ")
    listed = good("profiles").output
    for word in ("NAME", "loud", "Tiny", "you", "Makes it loud"):
        assert word in listed
    assert good("profiles", "list").output == listed
    assert "loud" in good("profiles", "list", "--model", tiny).output
    assert "Makes it loud" in good("profiles", "show", "loud").output
    assert good("profiles", "rm", "loud").output.startswith("removed ")
    assert "No profiles yet" in good("profiles").output


def test_json(file: Path) -> None:
    good("profiles", "add", file)
    (row,) = json.loads(good("profiles", "list", "--json").output)
    assert (row["name"], row["bundled"], row["problem"]) == ("loud", False, None)
    assert json.loads(good("profiles", "show", "loud", "--json").output)["name"] == "loud"


def test_one_name_for_several_models(file: Path, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.1, name="Other")
    second = tmp_path / "second.gguf"
    make_profile(other, name="loud").save(second)
    good("profiles", "add", file)
    good("profiles", "add", second)
    assert "for several models (Other, Tiny)" in error_of("profiles", "rm", "loud")
    assert good("profiles", "show", "loud").output.count("fingerprint") == 2
    assert good("profiles", "show", "loud", "--model", other).output.count("fingerprint") == 1
    good("profiles", "rm", "loud", "--model", other)
    assert "Other" not in good("profiles").output and "Tiny" in good("profiles").output
    assert "for several" not in error_of("inspect", "lou")


def test_mistakes(file: Path, tmp_path: Path) -> None:
    assert "no such file" in error_of("profiles", "add", tmp_path / "none.gguf")
    good("profiles", "add", file)
    assert "you have a profile 'loud' for Tiny already" in error_of("profiles", "add", file)
    good("profiles", "add", file, "--replace")
    assert "unknown profile 'lout'; did you mean loud?" in error_of("profiles", "show", "lout")
    assert "unknown profile 'xyzzy'" in error_of("profiles", "rm", "xyzzy")
    assert error_of("profiles", "drop", code=2)


def test_damaged_profile_is_listed_with_what_is_wrong(file: Path) -> None:
    kept = Path(good("profiles", "add", file).stdout.removeprefix("added ").strip())
    kept.write_bytes(kept.read_bytes()[:400])
    assert "cut" in " ".join(good("profiles").output.split())
    assert "damaged or cut short" in error_of("profiles", "show", "loud")


def test_texts_of_a_file_cannot_move_the_cursor(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "sly.gguf"
    make_profile(tiny, name="sly", description="\x1b[2Jgone\r[bold]x[/bold]").save(path)
    for text in (good("profiles", "add", path).output, good("profiles").output, good("inspect", path).output):
        assert "\x1b" not in text and "\r" not in text
    assert "[bold]x[/bold]" in good("profiles").output
