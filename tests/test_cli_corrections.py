"""`/wrong` in a chat, and `profiles corrections`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import call, error_of, good
from finesteer_local import corrections
from finesteer_local.identity import read_model_identity
from test_cli_chat import talk
from tiny import make_profile


@pytest.fixture
def shut(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "shut.gguf"
    make_profile(tiny, gate="closed", name="shut").save(path)
    return path


@pytest.fixture
def wide(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "wide.gguf"
    make_profile(tiny, gate="partly", name="wide").save(path)
    return path


def test_wrong_keeps_the_turn(tiny: Path, shut: Path) -> None:
    result = talk(tiny, "/system be kind", "hello", "and now?", "/wrong", options=("-p", shut))
    [kept] = corrections.kept()
    assert (kept.profile, kept.should, kept.text) == ("shut", "steer", "and now?")
    assert kept.fingerprint == read_model_identity(tiny).fingerprint and kept.model_path == str(tiny)
    assert [message["role"] for message in kept.messages] == ["system", "user", "assistant", "user"]
    assert kept.score < kept.threshold
    assert f"kept as correction {kept.id}: 'and now?' should have been steered by shut" in result.stderr
    assert "finesteer-local profiles refit shut" in result.stderr


def test_the_other_way_round(tiny: Path, wide: Path) -> None:
    result = talk(tiny, "hello", "/wrong leave", "/wrong steer", options=("-p", wide))
    [kept] = corrections.kept()
    assert kept.should == "leave"
    assert "wide decided so: it steered" in result.stderr


def test_of_several_profiles_one_is_named(tiny: Path, shut: Path, wide: Path) -> None:
    lines = ("hello", "/wrong", "/wrong nobody", "/wrong shut wide steer", "/wrong shut", "/wrong steer shut")
    result = talk(tiny, *lines, options=("-p", shut, "-p", wide), code=1)
    assert "several profiles decided; say which: shut, wide" in result.stderr
    assert "profile 'nobody' was not active" in result.stderr and "give /wrong [steer|leave]" in result.stderr
    assert [(each.profile, each.should) for each in corrections.kept()] == [("shut", "steer")]


def test_nothing_to_correct(tiny: Path, tmp_path: Path) -> None:
    always = tmp_path / "always.gguf"
    make_profile(tiny, gate="open", name="always").save(always)
    assert "no answer yet to correct" in talk(tiny, "/wrong", code=1).stderr
    assert "no profile was active" in talk(tiny, "hello", "/wrong", code=1).stderr
    assert "has no gate to correct" in talk(tiny, "hello", "/wrong", options=("-p", always), code=1).stderr
    assert not corrections.kept()


def test_listed_and_deleted(tiny: Path, shut: Path) -> None:
    assert good("profiles", "corrections").stdout.startswith("No corrections. In a chat, /wrong keeps")
    talk(tiny, "hello", "/wrong", "and now?", "/wrong", options=("-p", shut))
    listed = good("profiles", "corrections").stdout
    first, second = corrections.kept()
    for words in ("ID", "shut", "be steered", "hello", "and now?", first.id, second.id):
        assert words in listed
    assert [row["id"] for row in json.loads(good("profiles", "corrections", "--json").stdout)] == [first.id, second.id]
    assert "No corrections of other." in good("profiles", "corrections", "other").stdout
    result = good("profiles", "corrections", "--delete", first.id)
    assert result.stdout == "deleted 1 correction\n" and "profiles refit shut" in result.stderr
    assert "lists them" in error_of("profiles", "corrections", "--delete", first.id)
    assert call("profiles", "corrections", "shut", "--delete-all").exit_code == 2
    assert good("profiles", "corrections", "--delete-all").stdout == "deleted 1 correction\n"
    assert not corrections.kept()
